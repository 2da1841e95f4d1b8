# ==== board: Raspberry Pi with U-Boot, started from the SD card ====
setenv otandem_dev "mmc 0"
setenv otandem_root_a root-a
setenv otandem_root_b root-b
setenv otandem_args "console=serial0,115200"
setenv otandem_save 'saveenv'
setenv otandem_load 'part number ${otandem_dev} ${label} otandem_part && load ${otandem_dev}:${otandem_part} ${kernel_addr_r} /boot/vmlinuz && load ${otandem_dev}:${otandem_part} ${ramdisk_addr_r} /boot/initrd && setenv otandem_initrd ${filesize}'
# With the device tree that the firmware has made for the board.
setenv otandem_boot 'booti ${kernel_addr_r} ${ramdisk_addr_r}:${otandem_initrd} ${fdt_addr}'
setenv otandem_give_up 'reset'

