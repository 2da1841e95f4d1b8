//! Updates as they should go.

use otandem_images::Chain;
use otandem_vm::stage::Stage;

/// A job moves the device from A to B; the outcome is true and the loader goes on with B.
pub fn good_update(chain: Chain) {
    let mut stage = Stage::up(chain);
    let offer = stage.good("2.0");
    stage.update("good", &offer, "B");
    let status = stage.status();
    assert_eq!(status["confirmed"], "B", "{status}");
    assert_eq!(status["bootloader"]["primary"], "B", "{status}");
    stage.sh("sync");
    stage.vm.reset().unwrap();
    stage.expect_up("B", "2.0");
    stage.finish();
}
