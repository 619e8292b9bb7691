//! A guest arrives in this process: what [`super::target`] needs of it.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use kvm_ioctls::Kvm;
use storage_core::record::Holder;
use vmm_core::compat::missing_features;
use vmm_core::spec::Spec;

use super::departure::features_here;
use super::target::TargetGuest;
use super::wire::Hello;
use crate::codec;
use crate::console::Console;
use crate::error::one_line;
use crate::guest::{Guest, Hold, Parts};
use crate::kvm;
use crate::machine::state::{MachineState, STATE_VERSION};
use crate::machine::{Backends, DiskAccess};
use crate::memory::GuestMemory;
use crate::notice::Notice;

/// The right to run the guest, where there is a datastore.
pub trait Adopt: Send {
    /// This host as a holder.
    fn holder(&self) -> Holder;
    /// Does the lease name this host?
    fn owns(&mut self) -> Option<bool>;
    /// Take the lease up; from here on its gate is open.
    fn adopt(&mut self) -> Result<u64, String>;
}

/// A guest that is arriving.
pub struct Arrival {
    console: Arc<Console>,
    notices: Sender<Notice>,
    access: DiskAccess,
    lease: Option<Box<dyn Adopt>>,
    guest: Option<Arc<Guest>>,
}

impl Arrival {
    /// Nothing has arrived yet.
    pub fn new(
        console: Arc<Console>,
        notices: Sender<Notice>,
        access: DiskAccess,
        lease: Option<Box<dyn Adopt>>,
    ) -> Self {
        Self {
            console,
            notices,
            access,
            lease,
            guest: None,
        }
    }

    /// The guest, once it runs here.
    pub fn into_guest(self) -> Option<Arc<Guest>> {
        self.guest
    }

    fn guest(&self) -> Result<&Arc<Guest>, String> {
        self.guest
            .as_ref()
            .ok_or_else(|| "no guest was built".to_owned())
    }

    fn parts(&self, kvm: Kvm, spec: Spec) -> Result<Parts, String> {
        let backends = Backends::open(&spec, self.console.clone(), &self.access);
        Ok(Parts {
            kvm,
            backends: backends.map_err(|error| one_line(&error))?,
            spec,
            masks: Vec::new(),
            notices: self.notices.clone(),
            epoch: None,
        })
    }
}

impl TargetGuest for Arrival {
    fn build(&mut self, hello: &Hello) -> Result<Arc<GuestMemory>, String> {
        let spec: Spec = toml::from_str(&hello.spec).map_err(|error| error.message().to_owned())?;
        spec.validate().map_err(|error| error.to_string())?;
        if hello.state_version != STATE_VERSION {
            return Err(format!(
                "its machine state has version {}, this program knows {STATE_VERSION}; \
                 use the same release on both sides",
                hello.state_version
            ));
        }
        if hello.epoch.is_some() != self.lease.is_some() {
            return Err(
                "one side has a lease for the guest and the other has not; give both \
                        the same --datastore and --guest"
                    .to_owned(),
            );
        }
        let kvm = kvm::open().map_err(|error| one_line(&error))?;
        let here = features_here(&kvm).map_err(|error| one_line(&error))?;
        let missing = missing_features(&hello.cpuid, &here);
        if !missing.is_empty() {
            return Err(format!(
                "this host's processor lacks what the guest may be using: {}",
                missing.join(", ")
            ));
        }
        let parts = self.parts(kvm, spec)?;
        let guest = Guest::empty(parts).map_err(|error| one_line(&error))?;
        let memory = guest.memory().clone();
        self.guest = Some(guest);
        Ok(memory)
    }

    fn holder(&self) -> Option<Holder> {
        self.lease.as_ref().map(|lease| lease.holder())
    }

    fn restore(&mut self, machine: &[u8]) -> Result<(), String> {
        let state: MachineState = codec::decode(machine).map_err(|error| one_line(&error))?;
        self.guest()?
            .arrive(state)
            .map_err(|error| one_line(&error))
    }

    fn owns(&mut self) -> Option<bool> {
        self.lease.as_mut().and_then(|lease| lease.owns())
    }

    fn run(&mut self) -> Result<(), String> {
        let epoch = self.lease.as_mut().map(|lease| lease.adopt()).transpose()?;
        let guest = self.guest()?;
        if let Some(epoch) = epoch {
            guest.set_epoch(epoch);
        }
        guest
            .backends()
            .acquire_disks()
            .map_err(|error| one_line(&error))?;
        guest
            .unhold(Hold::Migration)
            .map_err(|error| one_line(&error))?;
        if let Err(error) = guest.announce() {
            // The guest runs; the network finds it with its next packet.
            tracing::warn!(error = one_line(&error), "cannot announce the guest");
        }
        Ok(())
    }
}
