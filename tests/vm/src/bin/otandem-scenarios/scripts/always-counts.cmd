# A boot script that counts every boot down, on trial or not, and saves it: what many a board has that got its first
# A/B updates from another agent. Nothing left: both sets get three tries again, after a reset.

# ==== board: that of the virtual device comes here ====
# ==== selection ====
test -n "${BOOT_ORDER}" || setenv BOOT_ORDER "A B"
test -n "${BOOT_A_LEFT}" || setenv BOOT_A_LEFT 3
test -n "${BOOT_B_LEFT}" || setenv BOOT_B_LEFT 3

chosen=none
for set in ${BOOT_ORDER}; do
  if test ${chosen} = none; then
    if test ${set} = A && test ${BOOT_A_LEFT} != 0; then
      chosen=A
      label=${otandem_root_a}
      left=${BOOT_A_LEFT}
    elif test ${set} = B && test ${BOOT_B_LEFT} != 0; then
      chosen=B
      label=${otandem_root_b}
      left=${BOOT_B_LEFT}
    fi
  fi
done

if test ${chosen} = none; then
  echo "always counts: nothing is left"
  setenv BOOT_A_LEFT 3
  setenv BOOT_B_LEFT 3
  run otandem_save
  reset
fi

less=0
if test ${left} = 3; then less=2; fi
if test ${left} = 2; then less=1; fi
setenv BOOT_${chosen}_LEFT ${less}
echo "always counts: set ${chosen}, ${left} left, now ${less}"
run otandem_save
setenv bootargs "otandem.set=${chosen} root=PARTLABEL=${label} ro panic=3 ${otandem_args}"
if run otandem_load; then run otandem_boot; fi
reset
