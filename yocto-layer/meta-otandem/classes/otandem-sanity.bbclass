# Says that the layer is there and does nothing, which is what it does until the feature is chosen.
addhandler otandem_sanity
otandem_sanity[eventmask] = "bb.event.SanityCheck"
python otandem_sanity() {
    if 'otandem' in (d.getVar('DISTRO_FEATURES') or '').split() or d.getVar('OTANDEM_SKIP_SANITY') == '1':
        return
    bb.warn("meta-otandem is in the build but has no effect: add 'otandem' to DISTRO_FEATURES, take the layer out of "
            "bblayers.conf, or set OTANDEM_SKIP_SANITY = \"1\".")
}
