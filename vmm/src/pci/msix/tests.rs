use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// A router that remembers what it was told.
#[derive(Default)]
pub(crate) struct FakeRouter {
    pub routes: Mutex<Vec<(MsiRoute, Option<MsiMessage>)>>,
}

impl MsiRouter for FakeRouter {
    fn allocate(&self) -> io::Result<MsiRoute> {
        let mut routes = self.routes.lock().unwrap();
        let route = MsiRoute {
            gsi: routes.len() as u32,
            trigger: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        };
        routes.push((route.clone(), None));
        Ok(route)
    }

    fn set(&self, route: &MsiRoute, message: Option<MsiMessage>) -> io::Result<()> {
        self.routes.lock().unwrap()[route.gsi as usize].1 = message;
        Ok(())
    }
}

impl FakeRouter {
    /// Interrupts that `gsi` received since the last call.
    pub(crate) fn fired(&self, gsi: usize) -> u64 {
        self.routes.lock().unwrap()[gsi]
            .0
            .trigger
            .read()
            .unwrap_or(0)
    }
}

fn unit() -> (Arc<FakeRouter>, Msix) {
    let router = Arc::new(FakeRouter::default());
    let msix = Msix::new(3, router.clone()).unwrap();
    (router, msix)
}

fn program(msix: &Msix, vector: u64) {
    msix.write_table(vector * 16, &0xfee0_0000u64.to_le_bytes());
    msix.write_table(vector * 16 + 8, &0x41u64.to_le_bytes());
}

#[test]
fn a_masked_vector_waits() {
    let (router, msix) = unit();
    program(&msix, 1);
    msix.raise(1).unwrap();
    assert_eq!(router.fired(1), 0);
    let mut pending = [0];
    msix.read_pending(0, &mut pending);
    assert_eq!(pending, [0b10]);
    msix.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
    assert_eq!(router.fired(1), 0);
    msix.set_control(CONTROL_ENABLE);
    assert_eq!(router.fired(1), 1);
    msix.write_table(16 + 12, &1u32.to_le_bytes());
    msix.raise(1).unwrap();
    assert_eq!(router.fired(1), 0);
    msix.write_table(16 + 12, &0u32.to_le_bytes());
    assert_eq!(router.fired(1), 1);
}

#[test]
fn state_travels() {
    let (_, msix) = unit();
    program(&msix, 2);
    msix.set_control(CONTROL_ENABLE);
    msix.raise(0).unwrap();
    let (router, copy) = unit();
    copy.restore(&msix.save()).unwrap();
    assert_eq!(copy.save(), msix.save());
    copy.raise(2).unwrap();
    assert_eq!(router.fired(2), 1);
    assert_eq!(router.routes.lock().unwrap()[2].1.unwrap().data, 0x41);
    let (_, other) = (0, Msix::new(2, Arc::new(FakeRouter::default())).unwrap());
    assert!(other.restore(&msix.save()).is_err());
}

proptest! {
    #[test]
    fn no_access_panics(
        accesses in prop::collection::vec(
            (any::<bool>(), 0u64..0x1100, prop::collection::vec(any::<u8>(), 0..10), any::<u16>()),
            0..64,
        )
    ) {
        let (_, msix) = unit();
        for (table, offset, mut data, word) in accesses {
            if table {
                msix.write_table(offset, &data);
                msix.read_table(offset, &mut data);
            } else {
                msix.set_control(word);
                msix.raise(word % 5).unwrap();
                msix.read_pending(offset, &mut data);
            }
        }
        let saved = msix.save();
        for vector in &saved.vectors {
            let live = saved.enabled && !saved.masked && !vector.masked;
            prop_assert!(!(live && vector.pending));
        }
    }
}
