//! The kernel command lines that products copy: each of them brings a device back whose new set has no root.

const LINES: &[(&str, &str)] = &[
    ("uboot/boot.cmd", include_str!("../uboot/boot.cmd")),
    ("uboot/virtual.cmd", include_str!("../uboot/virtual.cmd")),
    ("grub/grub.cfg", include_str!("../grub/grub.cfg")),
    ("systemd-boot/otandem-a.template", include_str!("../systemd-boot/otandem-a.template")),
    ("systemd-boot/otandem-b.template", include_str!("../systemd-boot/otandem-b.template")),
];

fn words() -> impl Iterator<Item = (&'static str, &'static str)> {
    let code = LINES.iter().flat_map(|(name, text)| text.lines().map(move |line| (*name, line)));
    code.filter(|(_, line)| !line.starts_with('#'))
        .flat_map(|(name, line)| line.split([' ', '"']).map(move |word| (name, word)))
}

#[test]
fn no_kernel_waits_for_its_root_for_ever() {
    for (name, word) in words() {
        assert_ne!(word, "rootwait", "{name}: a set with a broken initrd would hang and not fall back");
    }
}

#[test]
fn every_kernel_without_a_root_resets_the_device() {
    for name in [
        "uboot/boot.cmd",
        "grub/grub.cfg",
        "systemd-boot/otandem-a.template",
        "systemd-boot/otandem-b.template",
    ] {
        let panics = words().any(|(file, word)| file == name && word == "panic=3");
        assert!(panics, "{name} has no panic=3");
    }
}
