# Chooses the slot set, counts its tries, boots it. Compiled by ./make-boot-script; README.md tells the rest.
#
# BOOT_ORDER lists the sets that may be booted, the first one first. BOOT_A_LEFT and BOOT_B_LEFT are their tries:
#
#   3            confirmed: booted for ever, nothing is counted and nothing written
#   2, 1         on trial: counted down, and saved, before each boot
#   0            used up: not booted
#   all else     as new, so after the environment was lost: three tries, that is, becomes 2 at the first boot
#
# A trial that cannot be counted is not made. A set that does not load is passed over. When nothing is left, A and B
# are tried as new; when that fails too, the board resets.
#
# Local variables of the shell carry what need not be saved. They cannot be made empty, hence the words.

# ==== board: adapt this part to the product ====
# The device that holds the slots, and the names of their partitions.
setenv otandem_dev "mmc 0"
setenv otandem_root_a root-a
setenv otandem_root_b root-b
# Appended to the kernel's command line.
setenv otandem_args "console=ttyS0,115200 quiet"
# U-Boot itself has loaded the environment.
setenv otandem_save 'saveenv'
# Loads all that a boot of the partition ${label} needs. False if anything is missing.
setenv otandem_load 'part number ${otandem_dev} ${label} otandem_part && load ${otandem_dev}:${otandem_part} ${kernel_addr_r} /boot/vmlinuz && load ${otandem_dev}:${otandem_part} ${ramdisk_addr_r} /boot/initrd && setenv otandem_initrd ${filesize}'
# Starts it. booti: 64-bit ARM and RISC-V, bootz: 32-bit ARM, with the device tree that U-Boot itself uses.
setenv otandem_boot 'booti ${kernel_addr_r} ${ramdisk_addr_r}:${otandem_initrd} ${fdtcontroladdr}'
# When nothing boots. Another way out would be a recovery system.
setenv otandem_give_up 'reset'

# ==== selection: the same for every board ====
# Gives ${set} the tries ${next}. What made no sense is gone afterwards.
setenv otandem_count '
if test ${left_a} = new; then setenv BOOT_A_LEFT; fi
if test ${left_b} = new; then setenv BOOT_B_LEFT; fi
if test ${set} = A; then left_a=${next}; setenv BOOT_A_LEFT ${next}; fi
if test ${set} = B; then left_b=${next}; setenv BOOT_B_LEFT ${next}; fi
run otandem_save'

order="A B"
if test -n "${BOOT_ORDER}"; then order="${BOOT_ORDER}"; else setenv BOOT_ORDER "A B"; fi
left_a=new
left_b=new
for n in 0 1 2 3; do
  if test "x${BOOT_A_LEFT}" = "x${n}"; then left_a=${n}; fi
  if test "x${BOOT_B_LEFT}" = "x${n}"; then left_b=${n}; fi
done

for round in listed last; do
  done_a=no
  done_b=no
  if test ${round} = last; then
    echo "otandem: nothing left to boot in [${BOOT_ORDER}], left ${left_a} ${left_b}: starting anew"
    order="A B"
  fi
  for set in ${order}; do
    left=0
    if test "x${set}" = xA && test ${done_a} = no; then done_a=yes; left=${left_a}; label=${otandem_root_a}; fi
    if test "x${set}" = xB && test ${done_b} = no; then done_b=yes; left=${left_b}; label=${otandem_root_b}; fi
    # In the last round only what the order really holds, which is both.
    if test ${round} = last; then left=new; fi

    next=none
    if test ${left} = new; then next=2; fi
    if test ${left} = 3; then next=same; fi
    if test ${left} = 2; then next=1; fi
    if test ${left} = 1; then next=0; fi

    # Counted before the load, since a load may hang; in the last round after it, so that a board on which nothing
    # loads does not wear out its flash while it resets for ever.
    go=no
    if test ${next} = same; then
      go=yes
    elif test ${round} = last; then
      go=yes
    elif test ${next} != none; then
      if run otandem_count; then go=yes; else echo "otandem: cannot save the environment: no trial of ${set}"; fi
    fi

    if test ${go} = yes; then
      echo "otandem: trying ${set}, left ${left}, next ${next}"
      if run otandem_load; then
        if test ${round} = last; then
          setenv BOOT_ORDER "A B"
          left_a=new
          left_b=new
          run otandem_count
        fi
        setenv bootargs "otandem.set=${set} root=PARTLABEL=${label} ro rootwait=30 panic=3 ${otandem_args}"
        echo "otandem: booting ${set}"
        run otandem_boot
      fi
      echo "otandem: ${set} does not boot"
    fi
  done
done
echo "otandem: neither set boots"
run otandem_give_up
