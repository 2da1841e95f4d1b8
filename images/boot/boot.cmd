echo "boot script: set A"
setenv bootargs "otandem.set=A root=PARTLABEL=root-a ro rootwait panic=3 console=ttyS0 quiet"
virtio scan
load virtio 0:3 0x2000000 /boot/vmlinuz
setenv kernel_size ${filesize}
load virtio 0:3 0x6000000 /boot/initrd
zboot 0x2000000 ${kernel_size} 0x6000000 ${filesize}
reset
