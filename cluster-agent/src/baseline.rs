//! What guests' processors can do: what all hosts of the cluster have, so that every guest can
//! move everywhere.
//!
//! Each host asks its VMM what it can show a guest and writes that into its `host.toml`. A guest
//! gets the common features when it starts, unless it is to have all of its host's; a host that
//! joins later with fewer lowers them for guests that start from then on.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use cluster_core::model::HostId;
use vmm_core::compat::CpuFeatures;

use crate::inventory::HostFile;

/// So many features are named at most; a host of another make lacks a hundred.
const NAMED_MAX: usize = 8;

/// What the VMM `program` can show a guest on this host.
pub fn of_this_host(program: &Path) -> Result<CpuFeatures, String> {
    let cannot = |why: &str| {
        let program = program.display();
        format!("cannot learn this host's processor features: {program} cpu-features: {why}")
    };
    let asked = Command::new(program).arg("cpu-features").output();
    let said = asked.map_err(|error| cannot(&error.to_string()))?;
    if !said.status.success() {
        return Err(cannot(String::from_utf8_lossy(&said.stderr).trim()));
    }
    let features = String::from_utf8_lossy(&said.stdout).trim().parse();
    features.map_err(|error| cannot(&format!("{error}")))
}

/// What all of them have; nothing is known of hosts whose VMM did not tell.
pub fn common<'a>(hosts: impl IntoIterator<Item = &'a HostFile>) -> Option<CpuFeatures> {
    let known = hosts.into_iter().filter_map(|host| host.cpu_features);
    known.reduce(CpuFeatures::common)
}

/// Hosts that lack what others have, and what that is.
pub fn lacking(hosts: &BTreeMap<HostId, HostFile>) -> BTreeMap<HostId, Vec<String>> {
    let known = || {
        hosts
            .iter()
            .filter_map(|(name, host)| Some((name, host.cpu_features?)))
    };
    let Some(any) = known().map(|(_, here)| here).reduce(CpuFeatures::any) else {
        return BTreeMap::new();
    };
    let lacking = known().map(|(name, here)| (name.clone(), any.missing(here)));
    lacking.filter(|(_, lacks)| !lacks.is_empty()).collect()
}

/// The names of some features, and how many more there are.
pub fn named(features: &[String]) -> String {
    let shown = features.len().min(NAMED_MAX);
    let names = features[..shown].join(", ");
    match features.len() - shown {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use cluster_core::model::Resources;

    use super::*;

    fn host(cpu_features: Option<&str>) -> HostFile {
        HostFile {
            address: ([127, 0, 0, 1], 7440).into(),
            capacity: Resources::new(1000, 1024),
            cpu_features: cpu_features.map(|text| text.parse().unwrap()),
            version: String::new(),
        }
    }

    #[test]
    fn guests_get_what_all_hosts_have_and_who_has_less_is_named() {
        // avx2 is bit 5 of the third word, bmi2 bit 8.
        let all = BTreeMap::from([
            ("a".to_owned(), host(Some("1-1-120-0-0-0-0-0-0-7"))),
            ("b".to_owned(), host(Some("1-1-100-0-0-0-0-0-0-7"))),
            ("c".to_owned(), host(Some("1-1-120-0-0-0-0-0-0-7"))),
            ("d".to_owned(), host(None)),
        ]);
        let common = common(all.values()).unwrap();
        assert_eq!(common.to_string(), "1-1-100-0-0-0-0-0-0-7");
        let lacking = lacking(&all);
        assert_eq!(
            lacking,
            BTreeMap::from([("b".to_owned(), vec!["avx2".to_owned()])])
        );
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..10).map(|n| format!("f{n}")).collect();
        assert_eq!(named(&names), "f0, f1, f2, f3, f4, f5, f6, f7 and 2 more");
        assert_eq!(named(&names[..2]), "f0, f1");
    }
}
