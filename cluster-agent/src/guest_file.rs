//! What the datastore says about a guest and an image, and how that becomes a spec.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cluster_core::drs::Automation;
use cluster_core::model::{Desired, Guest, GuestId, Priority, Readiness, Resources};
use serde::{Deserialize, Serialize};
use vmm_core::compat::CpuFeatures;
use vmm_core::mac::Mac;
use vmm_core::spec::{DiskFormat, DiskSpec, NetSpec, Spec};

use crate::network::tap_name;

/// A guest, as its `guest.toml` describes it. Nothing in it belongs to any one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestFile {
    /// What its owner wants of it.
    pub desired: Desired,
    /// Order of restart.
    #[serde(default)]
    pub priority: Priority,
    /// Restarted when its host is lost.
    pub protected: bool,
    /// May be moved by itself.
    pub movable: bool,
    /// How much is done with it without asking, if not what holds for the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automation: Option<Automation>,
    /// Guaranteed processor time, in thousandths of a core.
    #[serde(default)]
    pub reserve_mcpu: u64,
    /// Seconds from its power button to the cut when it is stopped.
    #[serde(default = "default_grace_s")]
    pub grace_s: u64,
    /// The same for this once: it was stopped with so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_within_s: Option<u64>,
    /// The image that it boots from.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// What its processors can do.
    #[serde(default)]
    pub cpu: CpuModel,
    /// Kernel command line instead of the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Guests that are started before it, and how far they have to be.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub after: BTreeMap<GuestId, Readiness>,
    /// Disks in its own directory.
    #[serde(default, rename = "disk")]
    pub disks: Vec<GuestDisk>,
    /// Addresses of its network cards.
    #[serde(default)]
    pub macs: Vec<Mac>,
}

/// What a guest's processors can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// What all hosts of the cluster have: it can move to any of them.
    #[default]
    Cluster,
    /// All that the host has on which it starts: it can move to hosts that have no less.
    Host,
}

/// Seconds from its power button to the cut, if nobody says otherwise.
pub const GRACE_S: u64 = 120;
/// More than a day nobody waits.
pub const GRACE_MAX_S: u64 = 86_400;

fn default_grace_s() -> u64 {
    GRACE_S
}

/// A disk in the guest's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestDisk {
    /// Name of its file.
    pub name: String,
    /// Format of the file.
    pub format: DiskFormat,
}

/// An image, as its `image.toml` describes it. File names are relative to its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// The kernel.
    pub kernel: String,
    /// The initramfs.
    #[serde(default)]
    pub initramfs: Option<String>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// The disk that guests start from.
    #[serde(default)]
    pub disk: Option<String>,
    /// Format of that disk.
    #[serde(default)]
    pub format: DiskFormat,
}

impl ImageFile {
    /// Name of the file.
    pub const NAME: &str = "image.toml";

    /// Read the description in `dir`.
    pub fn read(dir: &Path) -> Result<Self, String> {
        let path = dir.join(Self::NAME);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        toml::from_str(&text)
            .map_err(|error| format!("{} is not an image's description: {error}", path.display()))
    }
}

impl GuestFile {
    /// The guest as the decisions see it. Where it runs is for its lease to say.
    pub fn model(&self) -> Guest {
        let configured = Resources::new(u64::from(self.cpus) * 1000, self.memory_mib);
        let reservation = Resources::new(self.reserve_mcpu, self.memory_mib);
        Guest {
            desired: self.desired,
            reservation,
            demand: reservation,
            priority: self.priority,
            protected: self.protected,
            movable: self.movable,
            automation: self.automation,
            after: self.after.clone(),
            ..Guest::sized(configured)
        }
    }

    /// The spec with which a VMM of this host runs the guest: every path in full, every
    /// network card on a tap of its own. `common`: what all hosts' processors can do.
    pub fn spec(
        &self,
        name: &str,
        image_dir: &Path,
        common: Option<CpuFeatures>,
        disk_path: impl Fn(&str) -> PathBuf,
    ) -> Result<Spec, String> {
        let image = ImageFile::read(image_dir)?;
        let in_image = |file: &str| image_dir.join(file).to_string_lossy().into_owned();
        Ok(Spec {
            name: name.to_owned(),
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            kernel: in_image(&image.kernel),
            initramfs: image.initramfs.as_deref().map(in_image),
            cmdline: self.cmdline.clone().unwrap_or(image.cmdline),
            cpu_features: common.filter(|_| self.cpu == CpuModel::Cluster),
            hugepages: false,
            disks: self
                .disks
                .iter()
                .map(|disk| DiskSpec {
                    path: disk_path(&disk.name).to_string_lossy().into_owned(),
                    format: disk.format,
                    readonly: false,
                    direct: true,
                })
                .collect(),
            nets: self
                .macs
                .iter()
                .enumerate()
                .map(|(card, &mac)| NetSpec {
                    tap: tap_name(name, card),
                    mac,
                })
                .collect(),
        })
    }
}
