//! The outcomes of the openers' rounds on stale nodes.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::ledger::Random;
use crate::compare::dump::Pages;

/// How the opener gets a descriptor. "Stale" leads to the old device, "right" to the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Way {
    OpenStale,
    OpenRight,
    VerifyStale,
    VerifyRight,
    /// Opens both, and passes in the stale one.
    VerifyStaleKeepingRight,
    /// Passes in the right one, and then the stale one.
    VerifyStaleAfterRight,
}

impl Way {
    pub(super) const ALL: [Self; 6] = [
        Self::OpenStale,
        Self::OpenRight,
        Self::VerifyStale,
        Self::VerifyRight,
        Self::VerifyStaleKeepingRight,
        Self::VerifyStaleAfterRight,
    ];

    /// Opening a stale node is tried as often as everything else together: there the lists decide.
    pub(super) fn pick(random: &mut Random) -> Self {
        let others = Self::ALL.len() - 1;
        let picked = random.below(2 * others as u64) as usize;
        Self::ALL.get(picked + 1).copied().unwrap_or(Self::OpenStale)
    }

    pub(super) fn is_right(self) -> bool {
        matches!(self, Self::OpenRight | Self::VerifyRight)
    }
}

/// The border that the length of a list is near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Length {
    Nothing,
    TheShortBuffer,
    AShortPage,
    APage,
    TwoPages,
}

impl Length {
    pub(super) fn pick(random: &mut Random) -> Self {
        match random.below(10) {
            0 => Self::Nothing,
            1 => Self::TheShortBuffer,
            2 => Self::AShortPage,
            3 => Self::TwoPages,
            _ => Self::APage,
        }
    }

    pub(super) fn border(self, pages: Pages) -> usize {
        match self {
            Self::Nothing => 0,
            Self::TheShortBuffer => pages.buffer,
            Self::AShortPage => pages.short,
            Self::APage => pages.long,
            Self::TwoPages => 2 * pages.long,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// On the right device, as the test HCA has it.
    Proved,
    /// Proved, but on another device.
    Wrong,
    Mismatch,
    Unproven,
    /// Refused for a reason that does not apply.
    False(String),
}

#[derive(Debug, Default)]
struct Counts {
    rounds: u64,
    proved: u64,
    wrong: u64,
    mismatch: u64,
    unproven: u64,
    refused_falsely: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    by_way: BTreeMap<Way, Counts>,
    /// Opens of stale nodes, by the length of the list of contexts.
    by_length: BTreeMap<Length, Counts>,
    /// The first of each way.
    wrong: BTreeMap<Way, String>,
    refused_falsely: Vec<String>,
}

/// How many of each kind are printed.
const SAMPLES: usize = 5;

impl Counts {
    fn count(&mut self, outcome: &Outcome) {
        self.rounds += 1;
        *match outcome {
            Outcome::Proved => &mut self.proved,
            Outcome::Wrong => &mut self.wrong,
            Outcome::Mismatch => &mut self.mismatch,
            Outcome::Unproven => &mut self.unproven,
            Outcome::False(_) => &mut self.refused_falsely,
        } += 1;
    }

    fn add(&mut self, other: &Self) {
        let Self { rounds, proved, wrong, mismatch, unproven, refused_falsely } = other;
        self.rounds += rounds;
        self.proved += proved;
        self.wrong += wrong;
        self.mismatch += mismatch;
        self.unproven += unproven;
        self.refused_falsely += refused_falsely;
    }

    fn print(&self, what: &str) {
        let Self { rounds, proved, wrong, mismatch, unproven, refused_falsely } = self;
        println!(
            "    {what}: {rounds} rounds, {proved} proved, {wrong} WRONG, {mismatch} NodeMismatch, \
             {unproven} Unproven, {refused_falsely} refused falsely"
        );
    }
}

impl Tally {
    pub(super) fn count(
        &mut self,
        way: Way,
        length: Length,
        outcome: Outcome,
        what: impl FnOnce() -> String,
    ) {
        self.by_way.entry(way).or_default().count(&outcome);
        if way == Way::OpenStale {
            self.by_length.entry(length).or_default().count(&outcome);
        }
        match outcome {
            Outcome::Wrong => {
                self.wrong.entry(way).or_insert_with(what);
            }
            Outcome::False(error) if self.refused_falsely.len() < SAMPLES => {
                self.refused_falsely.push(format!("{}: {error}", what()));
            }
            _ => {}
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        for (way, counts) in &other.by_way {
            self.by_way.entry(*way).or_default().add(counts);
        }
        for (length, counts) in &other.by_length {
            self.by_length.entry(*length).or_default().add(counts);
        }
        self.wrong.extend(other.wrong);
        self.refused_falsely.extend(other.refused_falsely);
    }

    pub(super) fn print(&self) {
        for (way, counts) in &self.by_way {
            counts.print(&format!("{way:?}"));
        }
        for (length, counts) in &self.by_length {
            counts.print(&format!("OpenStale, about {length:?}"));
        }
    }

    /// For the library as it is: never wrong, never refused without a reason, and tried often enough.
    pub(super) fn all_right(&self) -> Result<()> {
        let wrong: Vec<_> = self.wrong.values().map(String::as_str).collect();
        ensure!(wrong.is_empty(), "proved on the wrong device, e.g.\n{}", wrong.join("\n"));
        ensure!(
            self.refused_falsely.is_empty(),
            "refused for a reason that does not apply:\n{}",
            self.refused_falsely.join("\n")
        );
        for way in Way::ALL {
            let counts = self.by_way.get(&way);
            let Some(counts) = counts.filter(|counts| counts.rounds >= 5) else {
                anyhow::bail!("{way:?} was not tried often enough");
            };
            ensure!(
                !way.is_right() || 2 * counts.proved >= counts.rounds,
                "{way:?}: fewer than a half are proved"
            );
        }
        Ok(())
    }

    /// For a library that counts contexts by lists: it must be found wrong where lists decide.
    #[cfg(uverbs_leave_out)]
    pub(super) fn caught(&self) -> Result<()> {
        let wrong = self.by_way.get(&Way::OpenStale).map_or(0, |counts| counts.wrong);
        ensure!(wrong > 0, "the old rule was not found wrong: the soak proves nothing");
        Ok(())
    }
}
