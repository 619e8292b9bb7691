//! Changes what a guest is: what can be had at once is, the rest when it starts the next time.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use cluster_core::model::{Desired, HostId};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use shared_storage::{Datastore, StoreError};

use super::answer::{Answer, Refused, no_guest, said};
use super::check::{check, check_grace};
use super::shared::Api;
use super::views::EditGuest;
use crate::admission::{self, Candidate};
use crate::guest_file::GuestFile;
use crate::http::wish::Wish;

/// `GET /v1/guests/{guest}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSettings {
    /// Counts the changes; name it with a change that builds on what was read.
    pub revision: u64,
    /// What it is.
    pub settings: GuestFile,
}

/// What people and scripts may ask.
///
/// `GET /v1/guests/{guest}` answers [`GuestSettings`]; `PATCH` of the same takes an
/// [`EditGuest`] and answers what came of it in words.
pub fn public() -> Router<Arc<Api>> {
    Router::new().route("/v1/guests/{guest}", get(show).patch(edit))
}

async fn show(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
) -> Result<Json<GuestSettings>, Refused> {
    let read = move |store: &Datastore| {
        let dir = store
            .guest(&guest)
            .map_err(|error| no_guest(&guest, error))?;
        let file = dir.spec::<GuestFile>()?;
        Ok(GuestSettings {
            revision: file.revision,
            settings: file.spec,
        })
    };
    api.on_store(read).await.map(Json)
}

async fn edit(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Wish(wish): Wish<EditGuest>,
) -> Answer {
    change(&api, guest, wish).await
}

/// Change a guest, if it can be so and admission control has nothing against it.
pub(crate) async fn change(api: &Arc<Api>, guest: String, wish: EditGuest) -> Answer {
    let view = api.view().await?;
    let host = view.guests.into_iter().find(|one| one.name == guest);
    let host = host.and_then(|one| one.host);
    let (name, runs_on, asked) = (guest.clone(), host.clone(), wish.clone());
    let plan = api
        .on_store(move |store| Change::plan(store, &name, &asked, runs_on))
        .await?;
    if plan.before == plan.after {
        return Ok(said(format!("{guest} is like that already")));
    }
    let warning = if plan.wants_more() {
        let candidate = Candidate {
            guest: plan.model(),
            place: None,
        };
        admission::ask(api, &guest, candidate).await?
    } else {
        None
    };
    let mut words = plan.words(&guest);
    let name = guest.clone();
    api.on_store(move |store| {
        let dir = store.guest(&name).map_err(|error| no_guest(&name, error))?;
        let written = dir.update_spec(plan.revision, &plan.after);
        written.map_err(|error| changed(&name, error))
    })
    .await?;
    api.nudge.nudge();
    if let Some(warning) = warning {
        words = format!("{words}\nwarning: {warning}");
    }
    Ok(said(words))
}

fn changed(guest: &str, error: StoreError) -> Refused {
    match error {
        StoreError::Changed {
            expected, found, ..
        } => Refused(
            StatusCode::CONFLICT,
            format!(
                "{guest} was changed by somebody else meanwhile (revision {expected} is now \
                 {found}); look at it with: godwit edit {guest}, and try again"
            ),
        ),
        other => other.into(),
    }
}

/// A guest before and after.
struct Change {
    revision: u64,
    before: GuestFile,
    after: GuestFile,
    host: Option<HostId>,
}

impl Change {
    fn plan(
        store: &Datastore,
        guest: &str,
        wish: &EditGuest,
        host: Option<HostId>,
    ) -> Result<Self, Refused> {
        let dir = store.guest(guest).map_err(|error| no_guest(guest, error))?;
        let read = dir.spec::<GuestFile>()?;
        if let Some(expected) = wish.revision.filter(|wanted| *wanted != read.revision) {
            let (path, found) = (dir.path().to_owned(), read.revision);
            let stale = StoreError::Changed {
                path,
                expected,
                found,
            };
            return Err(changed(guest, stale));
        }
        let change = Self {
            revision: read.revision,
            after: apply(&read.spec, wish),
            before: read.spec,
            host,
        };
        if change.host.is_some() && change.after.memory_mib < change.before.memory_mib {
            let why = format!(
                "{guest} runs and holds its {} MiB; stop it to give it less memory: godwit stop \
                 {guest}",
                change.before.memory_mib
            );
            return Err(Refused(StatusCode::CONFLICT, why));
        }
        check_grace(wish.grace_s)?;
        check(store, guest, &change.after)?;
        Ok(change)
    }

    /// Must admission control be asked?
    fn wants_more(&self) -> bool {
        let counts = self.host.is_some() || self.after.desired == Desired::Running;
        let more = self.after.memory_mib > self.before.memory_mib
            || self.after.reserve_mcpu > self.before.reserve_mcpu
            || (self.after.protected && !self.before.protected);
        counts && more
    }

    fn model(&self) -> cluster_core::model::Guest {
        cluster_core::model::Guest {
            host: self.host.clone(),
            ..self.after.model()
        }
    }

    /// What holds at once, and what from the next start.
    fn words(&self, guest: &str) -> String {
        let (before, after) = (&self.before, &self.after);
        let machine = before.cpus != after.cpus
            || before.memory_mib != after.memory_mib
            || before.cmdline != after.cmdline
            || before.cpu != after.cpu;
        let mut others = after.clone();
        others.cpus = before.cpus;
        others.memory_mib = before.memory_mib;
        others.cpu = before.cpu;
        others.cmdline.clone_from(&before.cmdline);
        let rest = others != *before;
        match (&self.host, machine, rest) {
            (Some(host), true, false) => format!(
                "{guest} has its new processors, memory and command line from its next start; it \
                 runs on {host} as it is (a reboot keeps that, too): godwit stop {guest}, then \
                 godwit start {guest}"
            ),
            (Some(host), true, true) => format!(
                "{guest} is changed; its processors, memory and command line from its next start \
                 only: it runs on {host} with what it has (a reboot keeps that, too)"
            ),
            _ => format!("{guest} is changed"),
        }
    }
}

fn apply(file: &GuestFile, wish: &EditGuest) -> GuestFile {
    let mut file = file.clone();
    file.cpus = wish.cpus.unwrap_or(file.cpus);
    file.memory_mib = wish.memory_mib.unwrap_or(file.memory_mib);
    file.cpu = wish.cpu.unwrap_or(file.cpu);
    if let Some(cmdline) = &wish.cmdline {
        file.cmdline = Some(cmdline.clone()).filter(|text| !text.is_empty());
    }
    file.priority = wish.priority.unwrap_or(file.priority);
    file.protected = wish.protected.unwrap_or(file.protected);
    file.reserve_mcpu = wish.reserve_mcpu.unwrap_or(file.reserve_mcpu);
    file.grace_s = wish.grace_s.unwrap_or(file.grace_s);
    if let Some(after) = &wish.after {
        file.after.clone_from(after);
    }
    file
}

#[cfg(test)]
mod tests {
    use cluster_core::model::{Priority, Readiness};
    use shared_storage::ClusterFile;
    use shared_storage::state::Memory;
    use storage_core::timing::Timing;

    use super::*;
    use crate::guest_file::CpuModel;

    fn store(dir: &std::path::Path) -> Datastore {
        let store = Datastore::create(dir, &ClusterFile::new("test", Timing::default())).unwrap();
        let store = store.with_state(Arc::new(Memory::default()));
        let image = dir.join("images/tiny");
        std::fs::create_dir_all(&image).unwrap();
        std::fs::write(image.join("image.toml"), "kernel = \"k\"\n").unwrap();
        for name in ["web", "db"] {
            let file = GuestFile {
                desired: Desired::Stopped,
                priority: Priority::Medium,
                protected: true,
                movable: true,
                automation: None,
                reserve_mcpu: 0,
                grace_s: 1,
                stop_within_s: None,
                image: "tiny".to_owned(),
                cpus: 1,
                memory_mib: 64,
                cpu: CpuModel::Cluster,
                cmdline: None,
                after: [].into(),
                disks: vec![],
                macs: vec![],
            };
            store.create_guest(name, &file, |_| Ok(())).unwrap();
        }
        store
    }

    fn refused(store: &Datastore, wish: &EditGuest, host: Option<&str>) -> String {
        let planned = Change::plan(store, "web", wish, host.map(str::to_owned));
        planned.map(|_| ()).unwrap_err().1
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let nothing = EditGuest::default();
        let after = |name: &str| EditGuest {
            after: Some([(name.to_owned(), Readiness::Running)].into()),
            ..nothing.clone()
        };
        let cpus = EditGuest {
            cpus: Some(0),
            ..nothing.clone()
        };
        assert!(refused(&store, &cpus, None).contains("0 processors cannot be had"));
        let reserve = EditGuest {
            reserve_mcpu: Some(1001),
            ..nothing.clone()
        };
        assert!(refused(&store, &reserve, None).contains("only 1000 thousandths"));
        assert!(refused(&store, &after("nobody"), None).contains("there is no guest nobody"));
        assert!(refused(&store, &after("web"), None).contains("web after web"));
        let less = EditGuest {
            memory_mib: Some(32),
            ..nothing.clone()
        };
        assert!(refused(&store, &less, Some("a")).contains("stop it to give it less"));
        assert!(Change::plan(&store, "web", &less, None).is_ok());
        let stale = EditGuest {
            revision: Some(7),
            ..nothing
        };
        assert!(refused(&store, &stale, None).contains("revision 7 is now 1"));
    }

    #[test]
    fn what_holds_at_once_and_what_later_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let more = EditGuest {
            memory_mib: Some(128),
            priority: Some(Priority::High),
            ..EditGuest::default()
        };
        let change = Change::plan(&store, "web", &more, Some("a".to_owned())).unwrap();
        assert!(change.wants_more());
        assert!(change.words("web").contains("from its next start only"));
        let change = Change::plan(&store, "web", &more, None).unwrap();
        assert!(!change.wants_more(), "it is off and takes nothing");
        assert_eq!(change.words("web"), "web is changed");
    }
}
