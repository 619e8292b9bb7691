//! What can be asked, a line each.

/// Something that can be asked.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    /// Schema of the request's body.
    pub(super) body: Option<&'static str>,
    /// Name, whether it is needed, and schema of each parameter after the `?`.
    pub(super) query: &'static [(&'static str, bool, &'static str)],
    pub(super) answer: Answer,
}

/// What comes back.
pub(super) enum Answer {
    /// JSON of this schema.
    Json(&'static str),
    /// Text of this media type.
    Text(&'static str),
    /// The connection, for another protocol.
    Upgrade,
}

impl Operation {
    /// A name for generated programs: `post-guests-guest-start`.
    pub(super) fn id(&self) -> String {
        let words = self.path.trim_start_matches("/v1").split(['/', '.']);
        words
            .filter(|word| !word.is_empty())
            .fold(self.method.to_owned(), |id, word| {
                format!("{id}-{}", word.trim_matches(['{', '}']))
            })
    }
}

const fn ask(path: &'static str, summary: &'static str, answer: &'static str) -> Operation {
    Operation {
        method: "get",
        path,
        summary,
        body: None,
        query: &[],
        answer: Answer::Json(answer),
    }
}

const fn text(path: &'static str, summary: &'static str, kind: &'static str) -> Operation {
    Operation {
        answer: Answer::Text(kind),
        ..ask(path, summary, "")
    }
}

const fn act(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    body: Option<&'static str>,
) -> Operation {
    Operation {
        method,
        body,
        ..ask(path, summary, "Said")
    }
}

/// All of it.
pub(super) const OPERATIONS: &[Operation] = &[
    ask(
        "/v1/cluster",
        "The whole cluster: hosts, guests, reserve, what is wrong",
        "Cluster",
    ),
    ask(
        "/v1/cluster/upgrade-plan",
        "Host by host: what moves while it is down",
        "UpgradePlan",
    ),
    ask("/v1/images", "Images that guests can be made from", "Names"),
    Operation {
        query: &[("count", false, "Count"), ("about", false, "Text")],
        ..ask(
            "/v1/events",
            "What happened and why, the newest last",
            "Events",
        )
    },
    Operation {
        query: &[("count", false, "Count")],
        ..text(
            "/v1/events/stream",
            "Events as they happen (server-sent events); Last-Event-ID goes on after one",
            "text/event-stream",
        )
    },
    text("/metrics", "Numbers for Prometheus", "text/plain"),
    ask("/v1/openapi.json", "This document", "Document"),
    ask(
        "/v1/ca",
        "The certificate by which every agent of this cluster can be known",
        "Authority",
    ),
    ask(
        "/v1/tokens",
        "Tokens without their secrets; on a host only",
        "Tokens",
    ),
    Operation {
        method: "post",
        body: Some("CreateToken"),
        ..ask("/v1/tokens", "Make a token; on a host only", "NewToken")
    },
    act(
        "delete",
        "/v1/tokens/{token}",
        "Revoke a token; on a host only",
        None,
    ),
    act(
        "post",
        "/v1/guests",
        "Make a guest from an image",
        Some("CreateGuest"),
    ),
    ask(
        "/v1/guests/{guest}",
        "What it is made of, with its revision",
        "GuestSettings",
    ),
    act(
        "patch",
        "/v1/guests/{guest}",
        "Change it: what can change while it runs at once, the rest when it starts",
        Some("EditGuest"),
    ),
    act(
        "post",
        "/v1/guests/{guest}/clone",
        "Copy a guest that is off",
        Some("CloneGuest"),
    ),
    act(
        "delete",
        "/v1/guests/{guest}",
        "Delete a guest that is off, with its disks",
        None,
    ),
    Operation {
        query: &[("on", false, "Name")],
        ..act(
            "post",
            "/v1/guests/{guest}/start",
            "Start it on the best host with room, or on that host",
            None,
        )
    },
    act(
        "post",
        "/v1/guests/{guest}/stop",
        "Press its power button, then cut its power",
        Some("StopGuest"),
    ),
    act(
        "post",
        "/v1/guests/{guest}/pause",
        "Have it stand still",
        None,
    ),
    act("post", "/v1/guests/{guest}/resume", "Let it go on", None),
    act(
        "post",
        "/v1/guests/{guest}/reboot",
        "Reset it; it boots on the same host",
        None,
    ),
    Operation {
        answer: Answer::Upgrade,
        ..ask(
            "/v1/guests/{guest}/console",
            "Its serial port, with Upgrade: godwit-console",
            "",
        )
    },
    Operation {
        method: "post",
        body: Some("MigrateGuest"),
        ..ask(
            "/v1/guests/{guest}/migrate",
            "Begin to move it, running",
            "Ordered",
        )
    },
    Operation {
        method: "post",
        body: Some("MigrateGuest"),
        ..ask(
            "/v1/guests/{guest}/rehearsal",
            "What moving it would come to",
            "Rehearsed",
        )
    },
    Operation {
        query: &[("on", true, "Name")],
        ..ask(
            "/v1/guests/{guest}/migration",
            "How its latest move goes, as its source knows",
            "Migration",
        )
    },
    act(
        "post",
        "/v1/guests/{guest}/automation",
        "May it be moved without asking?",
        Some("ChangeGuestDrs"),
    ),
    act(
        "post",
        "/v1/guests/{guest}/reservation",
        "Guarantee processor time to it",
        Some("Reserve"),
    ),
    act("delete", "/v1/hosts/{host}", "Forget a dead host", None),
    act(
        "post",
        "/v1/hosts/{host}/maintenance",
        "Empty a host, or take it back into service",
        Some("Maintain"),
    ),
    act(
        "post",
        "/v1/hosts/{host}/leave",
        "Have a host leave the cluster once it is empty, or stay after all",
        Some("Leave"),
    ),
    ask(
        "/v1/config",
        "What holds for the whole cluster: admission, isolation, patience",
        "Config",
    ),
    act(
        "patch",
        "/v1/config",
        "Change what is named of it",
        Some("ChangeConfig"),
    ),
    ask("/v1/drs", "What balancing has found and does", "Drs"),
    act(
        "post",
        "/v1/drs/settings",
        "Change how balancing works",
        Some("ChangeDrs"),
    ),
    act(
        "post",
        "/v1/drs/apply",
        "Carry recommendations out; all if none is named",
        Some("Numbers"),
    ),
    ask("/v1/rules", "Rules and groups of hosts", "Rules"),
    act("put", "/v1/rules/{rule}", "Set a rule", Some("Rule")),
    act("delete", "/v1/rules/{rule}", "Remove a rule", None),
    act(
        "put",
        "/v1/groups/{group}",
        "Set a group of hosts; an empty one is removed",
        Some("Names"),
    ),
];
