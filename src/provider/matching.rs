//! Finding a device's provider.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{Match, MatchedBy, PinnedView, Provider, builtin};
use crate::error::Result;

/// The providers that a program registered, in the order of registration.
#[derive(Default)]
pub(crate) struct Providers(Vec<Arc<Registered>>);

/// A registered provider, and the properties by which it is found. These are read once, so that no program
/// code runs during a search.
pub(super) struct Registered {
    pub(super) provider: Arc<dyn Provider>,
    name: String,
    matches: Vec<Match>,
    abi_versions: RangeInclusive<u32>,
}

impl Providers {
    pub(crate) fn new(providers: impl IntoIterator<Item = Arc<dyn Provider>>) -> Self {
        let register = |provider: Arc<dyn Provider>| {
            let (name, matches) = (provider.name().to_owned(), provider.matches().to_vec());
            let abi_versions = provider.abi_versions();
            Arc::new(Registered { provider, name, matches, abi_versions })
        };
        Self(providers.into_iter().map(register).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Finds the provider of a device: by driver id, then by name, then by modalias.
    pub(super) fn find(&self, view: &PinnedView<'_>) -> Result<Option<(Found, MatchedBy)>> {
        for by in [MatchedBy::Driver, MatchedBy::Name, MatchedBy::Modalias] {
            for registered in &self.0 {
                for wanted in &registered.matches {
                    if view.is_recognised(wanted, by)? {
                        return Ok(Some((Found::Registered(registered.clone()), by)));
                    }
                }
            }
            for provider in &builtin::ALL {
                for wanted in provider.matches() {
                    if view.is_recognised(&wanted, by)? {
                        return Ok(Some((Found::BuiltIn(provider), by)));
                    }
                }
            }
        }
        Ok(None)
    }
}

pub(super) enum Found {
    BuiltIn(&'static builtin::BuiltIn),
    Registered(Arc<Registered>),
}

impl Found {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::BuiltIn(provider) => provider.name,
            Self::Registered(registered) => &registered.name,
        }
    }

    pub(super) fn abi_versions(&self) -> RangeInclusive<u32> {
        match self {
            Self::BuiltIn(provider) => provider.abi_versions.clone(),
            Self::Registered(registered) => registered.abi_versions.clone(),
        }
    }
}
