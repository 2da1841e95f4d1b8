# For an image that devices are made of and updated to. Inherit it in the image's recipe. Beside the disk image (.wic) it
# leaves in the deploy folder what an operator uploads:
#
#   IMAGE-MACHINE-VERSION-SLOT.zst     the update image of each slot, in frames of zstd
#   IMAGE-MACHINE-VERSION.fota.json    the FOTA job document with its digests; IMAGE-MACHINE.fota.json links to it
#
# The slots on the disk image are byte for byte the images of the update. Variables: otandem-settings.bbclass.
inherit otandem-settings features_check

REQUIRED_DISTRO_FEATURES += "otandem"

IMAGE_FSTYPES += "${OTANDEM_ROOTFS_TYPE} wic wic.bmap"
IMAGE_TYPEDEP:wic:append = " ${OTANDEM_ROOTFS_TYPE}"
IMAGE_INSTALL:append = " otandem otandem-boot otandem-data"

WKS_FILE = "otandem-${OTANDEM_BOOTLOADER}.wks.in"
# scarthgap looks in wic/ of each layer only; newer series refuse such a folder.
WKS_SEARCH_PATH:append = ":${OTANDEM_LAYERDIR}/files/wic"

# What the layouts use.
OTANDEM_WORK = "${WORKDIR}/otandem"
OTANDEM_WKS_A = "--source rawcopy --sourceparams=file=${IMGDEPLOYDIR}/${IMAGE_LINK_NAME}.${OTANDEM_ROOTFS_TYPE}"
OTANDEM_WKS_B = "${@'${OTANDEM_WKS_A}' if d.getVar('OTANDEM_SET_B') == 'copy' else '--source empty'}"

# A root file system larger than its slot is an error, so it is not grown beyond it either.
IMAGE_ROOTFS_EXTRA_SPACE ?= "0"

python () {
    try:
        otandem.settings.check(d.getVar, otandem_flag(d))
        otandem_layout(d)
    except otandem.settings.Mistake as mistake:
        raise bb.parse.SkipRecipe(str(mistake))
    if not d.getVar('OTANDEM_URL') and not d.getVar('OTANDEM_S3_URL'):
        d.setVar('OTANDEM_NO_URL', '1')
    # Kernel and initial RAM file system come from the machine's deploy folder.
    needed = ' virtual/kernel:do_deploy'
    if d.getVar('OTANDEM_INITRD') and d.getVar('INITRAMFS_IMAGE'):
        needed += ' %s:do_image_complete' % d.getVar('INITRAMFS_IMAGE')
    d.appendVarFlag('do_rootfs', 'depends', needed)
    d.appendVarFlag('do_otandem_volumes', 'depends', needed)
    root = 'do_image_' + d.getVar('OTANDEM_ROOTFS_TYPE').replace('-', '_')
    bb.build.addtask('do_otandem_volumes', 'do_image_wic', 'do_image', d)
    bb.build.addtask('do_otandem_update', 'do_image_complete', root, d)
    # A layout without the disk it is of: the sizes decide before anything is written.
    bb.build.addtask('do_otandem_sizes', 'do_image_wic do_otandem_update', root, d)
}

def otandem_layout(d):
    """A layout of the product's own, too, has every partition that agent and bootloader speak of."""
    name, path = d.getVar('WKS_FILE'), d.getVar('WKS_FULL_PATH')
    if not path:
        raise otandem.settings.Mistake('WKS_FILE is %s, which is in no folder of WKS_SEARCH_PATH: set it to a layout that is there.' % name)
    with open(path) as file:
        otandem.settings.layout(d.getVar('OTANDEM_BOOTLOADER'), 'WKS_FILE', name, file.read())

# ---- the root file system ------------------------------------------------------------------------------------------

ROOTFS_POSTPROCESS_COMMAND += "otandem_kernel_into_slot; otandem_mounts;"

python otandem_kernel_into_slot() {
    import os, shutil
    if d.getVar('OTANDEM_BOOTLOADER') == 'systemd-boot':
        return
    deploy, boot = d.getVar('DEPLOY_DIR_IMAGE'), os.path.join(d.getVar('IMAGE_ROOTFS'), 'boot')
    bb.utils.mkdirhier(boot)
    shutil.copyfile(os.path.join(deploy, d.getVar('KERNEL_IMAGETYPE')), os.path.join(boot, 'vmlinuz'))
    initrd = d.getVar('OTANDEM_INITRD')
    if initrd:
        shutil.copyfile(os.path.join(deploy, initrd), os.path.join(boot, 'initrd'))
    elif d.getVar('OTANDEM_BOOTLOADER') == 'u-boot':
        # Its script loads one in any case.
        with open(os.path.join(boot, 'initrd'), 'wb') as empty:
            empty.write(otandem.boot.EMPTY_INITRD)
}

python otandem_mounts() {
    import os
    root, kind = d.getVar('IMAGE_ROOTFS'), d.getVar('OTANDEM_BOOTLOADER')
    for place in [d.getVar('OTANDEM_DATA'), *otandem.settings.VOLUMES[kind].values()]:
        bb.utils.mkdirhier(root + place)
    path = root + '/etc/fstab'
    there = open(path).read() if os.path.exists(path) else ''
    lines = [line for line in otandem.settings.fstab(kind, d.getVar('OTANDEM_DATA')) if line.split()[0] not in there]
    with open(path, 'a') as fstab:
        fstab.write(''.join(line + '\n' for line in lines))
}

# ---- the volumes that a bootloader reads ----------------------------------------------------------------------------

do_otandem_volumes[depends] += "otandem-boot:do_deploy dosfstools-native:do_populate_sysroot mtools-native:do_populate_sysroot"
do_otandem_volumes[depends] += "${@'systemd-boot:do_deploy' if d.getVar('OTANDEM_BOOTLOADER') == 'systemd-boot' else ''}"
do_otandem_volumes[cleandirs] = "${OTANDEM_WORK}"
do_otandem_volumes[vardeps] += "${OTANDEM_VARIABLES}"
python do_otandem_volumes() {
    import os, shutil
    deploy, work = d.getVar('DEPLOY_DIR_IMAGE'), d.getVar('OTANDEM_WORK')
    try:
        shutil.copytree(os.path.join(deploy, 'otandem-boot'), work, dirs_exist_ok=True)
        otandem.boot.volumes(
            d.getVar('OTANDEM_BOOTLOADER'), otandem.settings.slots(d.getVar, otandem_flag(d)), deploy, work,
            otandem.settings.size('OTANDEM_BOOT_SIZE', d.getVar('OTANDEM_BOOT_SIZE')), d.getVar('EFI_BOOT_IMAGE'),
            d.getVar('IMAGE_BOOT_FILES'), d.getVar('KERNEL_IMAGETYPE'))
    except otandem.settings.Mistake as mistake:
        bb.fatal(str(mistake))
}

# ---- the update -----------------------------------------------------------------------------------------------------

def otandem_slot_files(d):
    """{slot: (its image, bytes it holds)}: what this recipe makes, else what the machine has deployed."""
    import os
    files = {}
    for slot in otandem.settings.slots(d.getVar, otandem_flag(d)):
        folders = [d.getVar('IMGDEPLOYDIR'), d.getVar('DEPLOY_DIR_IMAGE')]
        there = [os.path.join(folder, slot.source) for folder in folders]
        there = [path for path in there if os.path.exists(path)]
        if not there:
            raise otandem.settings.Mistake('there is no %s: set OTANDEM_SLOT_%s[file] to a file that the build makes.' % (slot.source, slot.name))
        files[slot.name] = (there[0], slot.size)
    return files

python do_otandem_sizes() {
    try:
        for name, (image, room) in otandem_slot_files(d).items():
            otandem.update.fits(name, image, room)
    except otandem.settings.Mistake as mistake:
        bb.fatal(str(mistake))
}
do_otandem_sizes[vardeps] += "${OTANDEM_VARIABLES}"

do_otandem_update[depends] += "zstd-native:do_populate_sysroot"
do_otandem_update[vardeps] += "${OTANDEM_VARIABLES}"
python do_otandem_update() {
    import os
    if d.getVar('OTANDEM_NO_URL'):
        bb.warn('The job document has an example address: set OTANDEM_S3_URL or OTANDEM_URL to where the update images will lie.')
    out, name = d.getVar('IMGDEPLOYDIR'), d.getVar('IMAGE_LINK_NAME')
    try:
        made = otandem.update.make(
            otandem_slot_files(d), out, name, d.getVar('OTANDEM_VERSION'), d.getVar('OTANDEM_COMPATIBLE'),
            d.getVar('OTANDEM_URL'), d.getVar('OTANDEM_S3_URL'), int(d.getVar('OTANDEM_ZSTD_LEVEL')))
    except otandem.settings.Mistake as mistake:
        bb.fatal(str(mistake))
    link = os.path.join(out, name + '.fota.json')
    if os.path.lexists(link):
        os.remove(link)
    os.symlink(made[-1], link)
}
