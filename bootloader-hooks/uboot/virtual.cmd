# ==== board: the virtual device (Debian's u-boot-qemu for qemu-x86, whose U-Boot keeps no environment) ====
# The environment lies in the partition uboot-env as U-Boot itself would keep a redundant one: two copies of 0x4000
# bytes at 0x0 and 0x8000, each a CRC32, a serial number (flags), and the variables. The newest valid one counts; a
# change goes to the other one with the next number. Only the three variables below are kept when it is written.
# This U-Boot has no arithmetic (setexpr); it can compare numbers, though, which is enough to count.
#
#   0x5000000  both copies as read              0x5020000  the newest copy without its flags, as `env` wants it
#   0x5070000  the copy that is to be written   0x5080000  flags of the newest copy
setenv otandem_dev "virtio 0"
setenv otandem_root_a root-a
setenv otandem_root_b root-b
# The timer of an emulated interrupt controller may come too late for the kernel's test of it.
setenv otandem_args "console=ttyS0 quiet no_timer_check"
# The kernel unpacks itself from 16 MiB on, over U-Boot's own place for the initrd.
setenv otandem_initrd_addr 0x8000000
setenv otandem_load 'part number ${otandem_dev} ${label} otandem_part && load ${otandem_dev}:${otandem_part} ${kernel_addr_r} /boot/vmlinuz && setenv otandem_kernel ${filesize} && load ${otandem_dev}:${otandem_part} ${otandem_initrd_addr} /boot/initrd && setenv otandem_initrd ${filesize}'
setenv otandem_boot 'zboot ${kernel_addr_r} ${otandem_kernel} ${otandem_initrd_addr} ${otandem_initrd}'
setenv otandem_give_up 'reset'

setenv otandem_import 'cp.b ${copy} 0x5020000 4; cp.b ${data} 0x5020004 0x3ffb; env import -c 0x5020000 0x3fff BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT'
setenv otandem_first 'copy=0x5000000; data=0x5000005; run otandem_import'
setenv otandem_second 'copy=0x5008000; data=0x5008005; run otandem_import'
newest=none
block1=none
virtio device 0
if part start ${otandem_dev} uboot-env otandem_env; then
  # The second copy is 0x40 blocks behind the first one; partitions begin at multiples of 0x100 blocks, below 128 GiB.
  digits=0x
  for rest in 000000 00000 0000 000 00; do
    for d in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do
      if itest ${digits}${d}${rest} -le 0x${otandem_env}; then digit=${d}; fi
    done
    digits=${digits}${digit}
  done
  if itest ${digits}00 -eq 0x${otandem_env}; then block1=${digits}40; fi
  block0=0x${otandem_env}
  if virtio read 0x5000000 ${block0} 0x60; then
    if run otandem_second; then newest=1; fi
    if run otandem_first; then
      if test ${newest} = none; then
        newest=0
      else
        if itest.b *0x5008004 -le *0x5000004; then newest=0; fi
        if itest.b *0x5000004 -eq 0xff && itest.b *0x5008004 -eq 0; then newest=1; fi
        if itest.b *0x5008004 -eq 0xff && itest.b *0x5000004 -eq 0; then newest=0; fi
      fi
    fi
  fi
fi
if test ${newest} = 0; then cp.b 0x5000004 0x5080000 1; fi
# Again, since the first copy was imported behind it, or a part of it before an error was found.
if test ${newest} = 1; then run otandem_second; cp.b 0x5008004 0x5080000 1; fi
# Without any the first number is 1.
if test ${newest} = none; then
  setenv BOOT_ORDER
  setenv BOOT_A_LEFT
  setenv BOOT_B_LEFT
  mw.b 0x5080000 0 1
fi
echo "otandem: environment ${newest}: order [${BOOT_ORDER}] left [${BOOT_A_LEFT}] [${BOOT_B_LEFT}]"

setenv otandem_save '
flags=00
seen=no
for h in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do
  for l in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do
    if test ${seen} = yes; then flags=${h}${l}; seen=past; fi
    if itest.b *0x5080000 -eq 0x${h}${l}; then seen=yes; fi
  done
done
env export -c -s 0x3fff 0x5020000 BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT
cp.b 0x5020000 0x5070000 4
mw.b 0x5070004 ${flags} 1
cp.b 0x5020004 0x5070005 0x3ffb
older=0
block=${block0}
if test ${newest} = 0; then older=1; block=${block1}; fi
if test ${block} != none && virtio write 0x5070000 ${block} 0x20; then
  newest=${older}
  mw.b 0x5080000 ${flags} 1
  true
else
  false
fi'

