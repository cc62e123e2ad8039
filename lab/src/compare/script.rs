//! The scripts: a world, a program, and the events between the program's steps.

/// The origin of the nodes in /dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nodes {
    /// The kernel.
    Kernel,
    /// Hand-made, in place of the kernel's nodes, and so in devtmpfs.
    ByHand,
    /// Hand-made, in a tmpfs that hides the kernel's nodes.
    Tmpfs,
}

/// The state before the program starts: `tst` is uverbs0, `other` is uverbs1, and both have the same GUID.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// Whether the driver disassociates open contexts when its device is removed.
    pub(super) disassociates: bool,
    pub(super) nodes: Nodes,
    /// Whether somebody holds `tst` open.
    pub(super) held: bool,
    /// Whether others have so many contexts on `tst` that their list takes several messages.
    pub(super) crowded: bool,
}

/// A step of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Lists the devices.
    List,
    /// Opens the device that the last list has as uverbs0.
    OpenFound,
    /// Opens `tst`, as listed before anything happened.
    OpenListed,
    /// Queries the device's attributes through the context.
    QueryDevice,
    /// Queries netlink for `tst`.
    Query,
    Pin,
    /// Opens uverbs0 and allocates a context, without checks.
    ForeignOpen,
    /// Verifies that descriptor.
    Verify,
    /// Records the kernel's answers, call by call.
    Look,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    ListAndOpen,
    Open,
    Verify,
    Query,
    /// Has `tst` open before anything happens.
    Through,
    /// Holds the directory and attributes of `tst`, as a pin does, and a context.
    Watch,
}

pub(super) const PROGRAMS: [Program; 6] = [
    Program::ListAndOpen,
    Program::Open,
    Program::Verify,
    Program::Query,
    Program::Through,
    Program::Watch,
];

impl Program {
    pub(super) fn steps(self) -> &'static [Step] {
        use Step::*;
        match self {
            Self::ListAndOpen => &[List, OpenFound, QueryDevice, List],
            Self::Open => &[OpenListed, QueryDevice, List, OpenListed],
            Self::Verify => &[Pin, ForeignOpen, Verify, List],
            Self::Query => &[Query, List, Query],
            Self::Through => &[QueryDevice, List, QueryDevice, OpenListed],
            Self::Watch => &[Look, Look],
        }
    }
}

/// What is at `/dev/infiniband/uverbs0` afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Symlink,
    Fifo,
    Regular,
    Directory,
    /// `/dev/null`'s number.
    AnotherDevice,
    OtherUverbs,
    /// The number of uverbs0.
    FirstUverbs,
    /// A hand-made node with the right number.
    Static,
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutation {
    Remove,
    RemoveOther,
    /// By a device with that name and GUID.
    Replace(&'static str, u64),
    /// And that one by a third.
    ReplaceTwice,
    Another,
    Rename,
    SwapNames,
    Evict,
    Listxattr,
    Node(Node),
    ForeignContext,
    ForeignComesAndGoes,
    /// All who hold `tst` open close it, except for the program.
    HoldersLetGo,
    /// To another network namespace and back, in exclusive mode.
    RecreateUverbs,
    /// To another network namespace, permanently.
    MoveAway,
    ReloadUverbs,
    /// Reload of all of RDMA, with a new device of the same name, GUID and index.
    ReloadCore,
}

pub(super) const MUTATIONS: [Mutation; 25] = [
    Mutation::Remove,
    Mutation::RemoveOther,
    Mutation::Replace("tst", 0xa0),
    Mutation::Replace("tst", 0xb0),
    Mutation::Replace("new", 0xb0),
    Mutation::ReplaceTwice,
    Mutation::Another,
    Mutation::Rename,
    Mutation::SwapNames,
    Mutation::Evict,
    Mutation::Listxattr,
    Mutation::Node(Node::Symlink),
    Mutation::Node(Node::Fifo),
    Mutation::Node(Node::Regular),
    Mutation::Node(Node::Directory),
    Mutation::Node(Node::AnotherDevice),
    Mutation::Node(Node::OtherUverbs),
    Mutation::Node(Node::Static),
    Mutation::Node(Node::Missing),
    Mutation::ForeignContext,
    Mutation::ForeignComesAndGoes,
    Mutation::HoldersLetGo,
    Mutation::RecreateUverbs,
    Mutation::MoveAway,
    Mutation::ReloadUverbs,
];

/// What a script needs from the host beyond its own world. The scripts run in this order: modules are unloaded
/// last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    Nothing,
    /// Exclusive network namespaces.
    Exclusive,
    /// rxe, which uses ib_uverbs, must not be loaded.
    NoRxe,
    /// The first index must be free, as it is right after ib_core was loaded.
    FreshCore,
}

pub(super) const NEEDS: [Needs; 4] =
    [Needs::Nothing, Needs::Exclusive, Needs::NoRxe, Needs::FreshCore];

/// One execution. Each mutation comes before the step with that number.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) setup: Setup,
    pub(super) program: Program,
    pub(super) mutations: Vec<(usize, Mutation)>,
}

impl Script {
    /// What it needs; `None` if that is impossible: the namespace mode can be changed only while there is one
    /// namespace, and ib_core can be unloaded only while nobody uses it.
    pub(super) fn needs(&self) -> Option<Needs> {
        let each = self.mutations.iter().map(|(_, mutation)| match mutation {
            Mutation::RecreateUverbs | Mutation::MoveAway => Needs::Exclusive,
            Mutation::ReloadUverbs => Needs::NoRxe,
            Mutation::ReloadCore => Needs::FreshCore,
            _ => Needs::Nothing,
        });
        // After a permanent move it would need a third namespace to move to.
        let moves =
            |mutation: &Mutation| matches!(mutation, Mutation::MoveAway | Mutation::RecreateUverbs);
        let moved = self.mutations.iter().position(|(_, one)| *one == Mutation::MoveAway);
        if let Some(at) = moved
            && self.mutations[at + 1..].iter().any(|(_, one)| moves(one))
        {
            return None;
        }
        let all: Vec<_> = each.filter(|needs| *needs != Needs::Nothing).collect();
        let first = all.first().copied().unwrap_or(Needs::Nothing);
        all.iter().all(|needs| *needs == first).then_some(first)
    }
}

fn setups() -> Vec<Setup> {
    let mut all = Vec::new();
    for nodes in [Nodes::Kernel, Nodes::ByHand, Nodes::Tmpfs] {
        for bits in 0..4 {
            let (disassociates, held) = (bits & 1 != 0, bits & 2 != 0);
            all.push(Setup { disassociates, nodes, held, crowded: false });
        }
    }
    for disassociates in [false, true] {
        let nodes = Nodes::Kernel;
        all.push(Setup { disassociates, nodes, held: false, crowded: true });
    }
    all
}

/// The device is removed while the program holds it open, and its driver does not disassociate.
pub(super) fn removal_that_waits() -> Script {
    let setup = Setup { disassociates: false, nodes: Nodes::Kernel, held: false, crowded: false };
    Script { setup, program: Program::Watch, mutations: vec![(0, Mutation::Remove)] }
}

/// Every mutation alone, before every step and after the last one, in every world; and no mutation at all.
pub(super) fn singles() -> Vec<Script> {
    let mut scripts = Vec::new();
    for setup in setups() {
        for program in PROGRAMS {
            scripts.push(Script { setup, program, mutations: Vec::new() });
            for at in 0..=program.steps().len() {
                for mutation in MUTATIONS {
                    scripts.push(Script { setup, program, mutations: vec![(at, mutation)] });
                }
            }
        }
    }
    scripts.extend(core_reloads());
    scripts
}

/// ib_core can be unloaded only while there is neither a descriptor nor a netlink socket.
fn core_reloads() -> Vec<Script> {
    let mut scripts = Vec::new();
    for setup in setups().into_iter().filter(|setup| !setup.held && !setup.crowded) {
        for (program, places) in [
            (Program::ListAndOpen, [0, 1].as_slice()),
            (Program::Open, &[0]),
            (Program::Verify, &[0]),
            (Program::Query, &[0, 1, 2]),
        ] {
            for at in places {
                let mutations = vec![(*at, Mutation::ReloadCore)];
                scripts.push(Script { setup, program, mutations });
            }
        }
    }
    scripts
}

/// Every pair of mutations in every program, each time at other steps and in another world.
pub(super) fn pairs() -> Vec<Script> {
    let setups: Vec<_> = setups().into_iter().filter(|setup| !setup.crowded).collect();
    let mut scripts = Vec::new();
    for program in PROGRAMS {
        let places = program.steps().len() + 1;
        for first in MUTATIONS {
            for second in MUTATIONS {
                let turn = scripts.len();
                let at = turn * 7 % places;
                let later = at + turn / 3 % (places - at);
                let setup = setups[turn * 5 % setups.len()];
                scripts.push(Script {
                    setup,
                    program,
                    mutations: vec![(at, first), (later, second)],
                });
            }
        }
    }
    scripts.retain(|script| script.needs().is_some());
    scripts
}
