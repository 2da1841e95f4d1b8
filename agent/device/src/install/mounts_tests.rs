use super::*;
use proptest::prelude::*;

const fn n(major: u64, minor: u64) -> Dev {
    Dev { major, minor }
}

const DISK: Dev = n(179, 0);
const BOOT_A: Dev = n(179, 1);
const ROOT_A: Dev = n(179, 2);
const ROOT_B: Dev = n(179, 3);
const DATA: Dev = n(179, 4);
const STICK: Dev = n(8, 0);
const STICK_1: Dev = n(8, 1);
const MAPPED: Dev = n(254, 0);
const LOOP: Dev = n(7, 0);

fn device(number: Dev, parent: Option<Dev>) -> Device {
    Device { number, parent, slaves: Vec::new(), backing: None }
}

fn devices() -> Vec<Device> {
    let mut all = vec![device(DISK, None), device(STICK, None), device(STICK_1, Some(STICK))];
    all.extend([BOOT_A, ROOT_A, ROOT_B, DATA].map(|p| device(p, Some(DISK))));
    all
}

fn in_use(mountinfo: &str, swaps: &str, more: Vec<Device>, nodes: &[(&str, Dev)]) -> InUse {
    let mut devices = devices();
    devices.extend(more);
    InUse::new(Evidence {
        mountinfo: mountinfo.into(),
        swaps: format!("Filename\tType\tSize\tUsed\tPriority\n{swaps}").into_bytes(),
        devices,
        nodes: nodes.iter().map(|(p, d)| (PathBuf::from(p), *d)).collect(),
    })
}

const PLAIN: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 179:2 / / rw,relatime - ext4 /dev/root rw
28 27 179:4 / /data rw,relatime shared:3 - ext4 /dev/mmcblk0p4 rw
";

#[test]
fn root_and_what_is_mounted_is_refused_and_the_other_set_is_not() {
    let used = in_use(PLAIN, "", vec![], &[]);
    assert_eq!(used.refusal(ROOT_A).unwrap(), "it is mounted at /");
    assert_eq!(used.refusal(DATA).unwrap(), "it is mounted at /data");
    assert_eq!(used.refusal(ROOT_B), None);
    assert_eq!(used.refusal(STICK), None);
}

#[test]
fn the_disk_that_holds_root_is_refused() {
    let used = in_use(PLAIN, "", vec![], &[]);
    assert_eq!(used.refusal(DISK).unwrap(), "of a partition of it: it is mounted at /");
}

#[test]
fn a_partition_of_a_disk_that_is_used_as_a_whole_is_refused() {
    let used = in_use(&format!("{PLAIN}29 27 8:0 / /mnt rw - vfat /dev/sda rw\n"), "", vec![], &[]);
    assert_eq!(used.refusal(STICK_1).unwrap(), "of its whole disk: it is mounted at /mnt");
}

#[test]
fn swap_is_refused_as_device_and_as_file() {
    let swaps = "/dev/mmcblk0p3\tpartition\t100\t0\t-2\n/data/swap\\040file\tfile\t100\t0\t-3\n";
    let used = in_use(PLAIN, swaps, vec![], &[("/dev/mmcblk0p3", ROOT_B)]);
    assert_eq!(used.refusal(ROOT_B).unwrap(), "it is used as swap");
    assert_eq!(used.file_refusal(Path::new("/data/swap file")).unwrap(), "it is used as swap");
    assert_eq!(used.file_refusal(Path::new("/data/root-b.img")), None);
}

#[test]
fn both_layers_of_an_overlay_root_are_refused_and_tell_its_disk() {
    let overlay = "\
30 1 179:2 / /media/lower ro - squashfs /dev/mmcblk0p2 ro
31 1 179:4 / /media/data rw - ext4 /dev/mmcblk0p4 rw
27 1 0:25 / / rw - overlay overlay rw,lowerdir=/media/lower,upperdir=/media/data/up,workdir=/media/data/work
";
    let used = in_use(overlay, "", vec![], &[]);
    assert!(used.refusal(ROOT_A).is_some() && used.refusal(DATA).is_some());
    assert_eq!(used.refusal(ROOT_B), None);
    assert!(used.beside_root(ROOT_B) && !used.beside_root(STICK_1));
}

#[test]
fn what_lies_below_a_mapped_root_is_refused() {
    let mapped = Device { slaves: vec![ROOT_A], ..device(MAPPED, None) };
    let used = in_use("27 1 254:0 / / ro - squashfs /dev/dm-0 ro\n", "", vec![mapped], &[]);
    assert_eq!(used.refusal(MAPPED).unwrap(), "it is mounted at /");
    assert_eq!(used.refusal(ROOT_A).unwrap(), "what is mounted at / lies on it");
    assert!(used.refusal(DISK).is_some());
    assert_eq!(used.refusal(ROOT_B), None);
    assert!(used.beside_root(ROOT_B), "the disk of / is found through the map");
}

#[test]
fn a_partition_of_a_mapped_disk_keeps_the_disks_below_from_being_written() {
    let part = n(254, 1);
    let mapped = Device { slaves: vec![STICK], ..device(MAPPED, None) };
    let mounts = format!("{PLAIN}29 27 254:1 / /mnt rw - ext4 /dev/dm-1 rw\n");
    let used = in_use(&mounts, "", vec![mapped, device(part, Some(MAPPED))], &[]);
    assert_eq!(used.refusal(STICK).unwrap(), "what is mounted at /mnt lies on it");
    assert!(used.refusal(STICK_1).is_some());
}

#[test]
fn a_loop_mounted_root_keeps_its_file_and_its_disk() {
    let looped = Device { backing: Some("/media/root-a.img".into()), ..device(LOOP, None) };
    let mounts = "\
30 1 179:4 / /media rw - ext4 /dev/mmcblk0p4 rw
27 1 7:0 / / ro - squashfs /dev/loop0 ro
";
    let used = in_use(mounts, "", vec![looped], &[]);
    assert!(used.refusal(DATA).is_some());
    assert_eq!(used.file_refusal(Path::new("/media/root-a.img")).unwrap(), "it is mounted at /");
    assert_eq!(used.file_refusal(Path::new("/media/root-b.img")), None);
    assert!(used.beside_root(ROOT_B) && !used.beside_root(STICK));
}

#[test]
fn btrfs_is_found_by_the_device_that_it_names() {
    let used =
        in_use("27 1 0:30 /@ / rw - btrfs /dev/mmcblk0p2 rw\n", "", vec![], &[("/dev/mmcblk0p2", ROOT_A)]);
    assert!(used.refusal(ROOT_A).is_some());
    assert!(used.beside_root(ROOT_B));
}

#[test]
fn nothing_is_beside_a_root_without_a_disk() {
    let used = in_use("27 1 0:2 / / rw - rootfs none rw\n", "", vec![], &[]);
    assert!(!used.beside_root(ROOT_B));
}

#[test]
fn one_disk_and_its_partition_overlap_two_partitions_do_not() {
    let mapped = Device { slaves: vec![ROOT_B], ..device(MAPPED, None) };
    let used = in_use(PLAIN, "", vec![mapped], &[]);
    assert!(used.overlap(ROOT_B, ROOT_B) && used.overlap(DISK, ROOT_B) && used.overlap(ROOT_B, DISK));
    assert!(used.overlap(MAPPED, ROOT_B) && used.overlap(ROOT_B, MAPPED));
    assert!(!used.overlap(ROOT_A, ROOT_B) && !used.overlap(MAPPED, ROOT_A));
}

#[test]
fn devices_that_contain_each_other_end_the_walk() {
    let odd = vec![
        Device { number: n(1, 0), parent: Some(n(1, 1)), slaves: vec![n(1, 1)], backing: Some("/f".into()) },
        Device { number: n(1, 1), parent: Some(n(1, 0)), slaves: vec![n(1, 0)], backing: Some("/f".into()) },
    ];
    let mounts = "27 1 1:0 / / rw - overlay o rw,lowerdir=/:/a,upperdir=/a\n28 27 1:1 / /a rw - overlay o rw,lowerdir=/\n";
    let used = in_use(mounts, "", odd, &[]);
    assert!(used.refusal(n(1, 1)).is_some());
    assert!(used.overlap(n(1, 0), n(1, 1)));
}

proptest! {
    #[test]
    fn noise_never_panics(mountinfo: Vec<u8>, swaps: Vec<u8>) {
        let used = InUse::new(Evidence { mountinfo, swaps, devices: devices(), nodes: BTreeMap::new() });
        used.refusal(ROOT_A);
    }

    #[test]
    fn a_mount_in_any_surroundings_is_found(
        before in "[ -~\n]{0,200}", after in "[ -~\n]{0,200}", optional in "( shared:[0-9]{1,3})?( master:[0-9])?"
    ) {
        let text = format!("{before}\n27 1 179:3 / /mnt\\040x rw{optional} - ext4 /dev/x rw\n{after}");
        let used = in_use(&text, "", vec![], &[]);
        prop_assert!(used.refusal(ROOT_B).is_some());
    }
}
