//! What makes a directory a datastore: cluster.toml.

use serde::{Deserialize, Serialize};
use storage_core::timing::Timing;

use crate::clock::random;

/// Of cluster.toml and of each host's own file.
pub(crate) const VERSION: u32 = 1;

/// What cluster.toml says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    version: u32,
    /// Which cluster this is: 32 hexadecimal digits, made once.
    #[serde(with = "hex_id")]
    pub id: [u8; 16],
    /// What people call it.
    pub name: String,
    /// The numbers of the lease protocol.
    #[serde(default)]
    pub timing: Timing,
    /// Settings of the agents (automation, admission, threshold); their meaning is theirs.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub policy: toml::Table,
}

impl ClusterFile {
    /// A new cluster with a random id.
    pub fn new(name: &str, timing: Timing) -> Self {
        Self {
            version: VERSION,
            id: random(),
            name: name.into(),
            timing,
            policy: toml::Table::new(),
        }
    }
}

mod hex_id {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &[u8; 16], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{:032x}", u128::from_be_bytes(*id)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 16], D::Error> {
        let text = String::deserialize(from)?;
        let number = u128::from_str_radix(&text, 16)
            .ok()
            .filter(|_| text.len() == 32);
        number
            .map(u128::to_be_bytes)
            .ok_or_else(|| D::Error::custom("id needs 32 hex digits"))
    }
}
