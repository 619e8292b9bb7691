//! A guest arrives in this process: what [`super::target`] needs of it.

use std::fs::File;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use shared_storage::gate::{Gate, Shut};
use shared_storage::image::ImageIdentity;
use shared_storage::lease::{LeaseGate, LeaseRecord};
use storage_core::record::Holder;
use vmm_core::compat::{CpuFeatures, CpuidLeaf, missing_features};
use vmm_core::spec::Spec;

use super::target::TargetGuest;
use super::usher::Usher;
use super::wire::Hello;
use crate::codec;
use crate::console::Console;
use crate::error::one_line;
use crate::guest::{Guest, Hold, Parts};
use crate::kvm;
use crate::lease::{Attempt, Citizen, Verdict};
use crate::machine::state::{MachineState, STATE_VERSION};
use crate::machine::{Backends, DiskAccess, Draft, Inspect};
use crate::memory::GuestMemory;
use crate::notice::Notice;
use crate::vcpu::{Vcpu, cpuid};

/// The gate of a guest that is arriving: nothing of it runs before the lease is adopted, and
/// from then on the lease's own gate decides.
#[derive(Debug, Default)]
pub struct ArrivalGate(OnceLock<Arc<LeaseGate>>);

impl Gate for ArrivalGate {
    fn pass(&self) -> Result<(), Shut> {
        self.0.get().map_or(Ok(()), |gate| gate.pass())
    }
}

/// The state of the empty machine is copied so often, and the fastest counts.
const STATE_COPIES: u32 = 3;

/// A guest that is arriving.
pub struct Arrival {
    console: Arc<Console>,
    notices: Sender<Notice>,
    citizen: Option<Citizen>,
    gate: Arc<ArrivalGate>,
    guest: Option<Arc<Guest>>,
    /// What hands the lease to us, and the lease as it was before.
    attempt: Option<(Attempt, LeaseRecord)>,
    usher: Usher,
}

impl Arrival {
    /// Nothing has arrived yet.
    pub fn new(console: Arc<Console>, notices: Sender<Notice>, citizen: Option<Citizen>) -> Self {
        Self {
            console,
            notices,
            citizen,
            gate: Arc::default(),
            guest: None,
            attempt: None,
            usher: Usher::default(),
        }
    }

    /// Who is told when the guest is about to run here.
    #[must_use]
    pub fn ushered_by(self, usher: Usher) -> Self {
        Self { usher, ..self }
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

    fn parts(&self, kvm: Kvm, spec: Spec, shown: &[CpuidLeaf]) -> Result<Parts, String> {
        if let Some(citizen) = &self.citizen {
            let checked = citizen.check_disks(&spec);
            checked.map_err(|error| one_line(&error))?;
        }
        let access = DiskAccess {
            gate: self.gate.clone(),
            root: self
                .citizen
                .as_ref()
                .map(|citizen| citizen.store().root().to_owned()),
            deferred: true,
        };
        let backends = Backends::open(&spec, self.console.clone(), &access);
        Ok(Parts {
            kvm,
            backends: backends.map_err(|error| one_line(&error))?,
            spec,
            // A reboot here shows the guest no more than it has seen so far.
            masks: cpuid::masks(CpuFeatures::of(shown)),
            notices: self.notices.clone(),
            epoch: None,
        })
    }
}

impl TargetGuest for Arrival {
    fn build(&mut self, hello: &Hello) -> Result<Arc<GuestMemory>, String> {
        let spec: Spec = toml::from_str(&hello.spec).map_err(|error| error.message().to_owned())?;
        spec.validate().map_err(|error| error.to_string())?;
        if let Some(net) = spec.nets.iter().find(|net| net.tap.starts_with("fd=")) {
            return Err(format!(
                "its network card is on {}, a descriptor of the source's process; guests that \
                 move need taps with names",
                net.tap
            ));
        }
        if hello.state_version != STATE_VERSION {
            return Err(format!(
                "its machine state has version {}, this program knows {STATE_VERSION}; \
                 use the same release on both sides",
                hello.state_version
            ));
        }
        self.attempt = match (&hello.lease, &self.citizen) {
            (Some(lease), Some(citizen)) => {
                citizen.check_offer(lease)?;
                Some((hello.token, lease.clone()))
            }
            (None, None) => None,
            _ => {
                return Err(
                    "one side has a lease for the guest and the other has not; give both \
                            the same --datastore and --guest"
                        .to_owned(),
                );
            }
        };
        let kvm = kvm::open().map_err(|error| one_line(&error))?;
        let here = cpuid::supported(&kvm).map_err(|error| one_line(&error))?;
        let here = cpuid::of_processor(&here, 0, spec.cpus, &[]);
        let here = cpuid::leaves(here.as_slice());
        let missing = missing_features(&hello.cpuid, &here);
        if !missing.is_empty() {
            return Err(format!(
                "this host's processor lacks what the guest may be using: {}",
                missing.join(", ")
            ));
        }
        for file in [Some(&spec.kernel), spec.initramfs.as_ref()]
            .into_iter()
            .flatten()
        {
            // It is needed as soon as the guest reboots.
            File::open(file).map_err(|error| format!("cannot open {file}: {error}"))?;
        }
        let parts = self.parts(kvm, spec, &hello.cpuid)?;
        check_disks(&parts.backends, &hello.disks)?;
        let guest = Guest::empty(parts).map_err(|error| one_line(&error))?;
        let memory = guest.memory().clone();
        self.guest = Some(guest);
        Ok(memory)
    }

    fn state_takes(&mut self, dry_run: bool) -> Result<Duration, String> {
        let guest = self.guest()?;
        let mut fastest = Duration::MAX;
        for _ in 0..STATE_COPIES {
            let began = Instant::now();
            let state = guest.save().map_err(|error| one_line(&error))?;
            let bytes = codec::encode(&state).map_err(|error| one_line(&error))?;
            codec::decode::<MachineState>(&bytes).map_err(|error| one_line(&error))?;
            fastest = fastest.min(began.elapsed());
        }
        if !dry_run {
            // Pouring it in takes about as long; the machine is still to be poured into.
            return Ok(fastest * 2);
        }
        let state = guest.save().map_err(|error| one_line(&error))?;
        let began = Instant::now();
        guest.arrive(state).map_err(|error| one_line(&error))?;
        Ok(fastest + began.elapsed())
    }

    fn holder(&self) -> Option<Holder> {
        self.citizen.as_ref().map(Citizen::holder)
    }

    fn prepare(&mut self, draft: &[u8]) -> Result<(), String> {
        let draft: Draft = codec::decode(draft).map_err(|error| one_line(&error))?;
        let prepared = self.guest()?.prepare(draft);
        prepared.map_err(|error| one_line(&error))
    }

    fn restore(&mut self, machine: &[u8], paused: bool) -> Result<(), String> {
        let state: MachineState = codec::decode(machine).map_err(|error| one_line(&error))?;
        let guest = self.guest()?;
        guest.arrive(state).map_err(|error| one_line(&error))?;
        if paused {
            guest
                .hold(Hold::Operator)
                .map_err(|error| one_line(&error))?;
        }
        Ok(())
    }

    fn verdict(&mut self) -> Option<Verdict> {
        let (attempt, from) = self.attempt.as_ref()?;
        self.citizen.as_ref()?.verdict(attempt, from).ok()
    }

    fn run(&mut self) -> Result<Option<Instant>, String> {
        let guest = self.guest()?.clone();
        self.usher.let_in();
        if let (Some(citizen), Some((attempt, from))) = (self.citizen.take(), &self.attempt) {
            let lease = Arc::new(citizen.adopt_from(attempt, from)?);
            let _ = self.gate.0.set(lease.gate());
            guest.set_lease(lease.clone());
            let guarded = lease.guard(guest.clone());
            guarded.map_err(|error| format!("cannot watch over the lease: {error}"))?;
        }
        guest
            .backends()
            .acquire_disks()
            .map_err(|error| one_line(&error))?;
        guest
            .unhold(Hold::Migration)
            .map_err(|error| one_line(&error))?;
        let began = |machine: &dyn Inspect| machine.vcpus().iter().filter_map(Vcpu::began).max();
        Ok(guest.inspect(began).ok().flatten())
    }

    fn forget(&mut self) {
        self.guest = None;
        self.attempt = None;
    }

    fn announce(&mut self) {
        let announced = self.guest.as_ref().map(|guest| guest.announce());
        if let Some(Err(error)) = announced {
            // The guest runs; the network finds it with its next packet.
            tracing::warn!(error = one_line(&error), "cannot announce the guest");
        }
    }
}

fn check_disks(backends: &Backends, theirs: &[ImageIdentity]) -> Result<(), String> {
    if theirs.len() != backends.disks.len() {
        let (there, here) = (theirs.len(), backends.disks.len());
        return Err(format!(
            "the source names {there} disks and its spec {here}"
        ));
    }
    for (disk, theirs) in backends.disks.iter().zip(theirs) {
        disk.check_is(theirs).map_err(|error| one_line(&error))?;
    }
    Ok(())
}
