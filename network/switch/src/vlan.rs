//! Which VLAN a frame is in, and which ports are.
//!
//! One number decides: the VLAN in which a frame *came*. For private VLANs (RFC 5517) that is the secondary one, if it came from an
//! isolated or community port, and the primary one, if it came from a promiscuous port. A trunk carries just that number as the
//! tag, so two switches that are joined by one agree.

use std::collections::{BTreeMap, BTreeSet};

use vireo_frame::Tag;

/// A VLAN, 1 to 4094; 0 is the network of frames without tags, and with ones that have but a priority.
pub type Vlan = u16;
/// The last one.
pub const LAST: Vlan = 4094;

/// How a port takes part in VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanMode {
    /// In one, of which whoever is behind it knows nothing.
    Access(Vlan),
    /// In many, told apart by tags.
    Trunk {
        /// That of frames without a tag.
        native: Vlan,
        /// Those whose tags may pass; the native one need not be among them.
        allowed: VlanSet,
    },
    /// In a private one.
    Private {
        /// The VLAN that the promiscuous ports send in, and all hear.
        primary: Vlan,
        /// Whom it may reach.
        role: Private,
    },
}

/// What a port of a private VLAN is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Private {
    /// Reaches promiscuous ports.
    Isolated(Vlan),
    /// Reaches those of its community, and promiscuous ports.
    Community(Vlan),
    /// Reaches all whose secondary VLAN is among these.
    Promiscuous(VlanSet),
}

/// A set of VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanSet {
    /// All of them.
    All,
    /// These.
    These(BTreeSet<Vlan>),
}

impl VlanSet {
    /// Whether one is in it.
    pub fn has(&self, vlan: Vlan) -> bool {
        match self {
            Self::All => true,
            Self::These(set) => set.contains(&vlan),
        }
    }

    fn members(&self) -> impl Iterator<Item = Vlan> {
        match self {
            Self::All => None,
            Self::These(set) => Some(set.iter().copied()),
        }
        .into_iter()
        .flatten()
    }
}

impl FromIterator<Vlan> for VlanSet {
    fn from_iter<T: IntoIterator<Item = Vlan>>(vlans: T) -> Self {
        Self::These(vlans.into_iter().collect())
    }
}

/// A mode that no port can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VlanError {
    /// It is none.
    #[error("VLAN {0} is none: VLANs are 1 to {LAST}, and 0 is the network without tags")]
    NoVlan(Vlan),
    /// A private VLAN's primary or secondary one is the network without tags, or both are one.
    #[error("a private VLAN needs a primary and secondary VLANs of 1 to {LAST} that differ")]
    NotPrivate,
    /// A promiscuous port has to say whom it reaches.
    #[error("a promiscuous port needs a list of secondary VLANs, not all of them")]
    Unbounded,
}

impl VlanMode {
    /// Whether a port can be like that.
    ///
    /// # Errors
    /// Not.
    pub fn check(&self) -> Result<(), VlanError> {
        let known = |v: Vlan| if v > LAST { Err(VlanError::NoVlan(v)) } else { Ok(()) };
        match self {
            Self::Access(vlan) => known(*vlan),
            Self::Trunk { native, allowed } => {
                known(*native).and_then(|()| allowed.members().try_for_each(known))
            }
            Self::Private { primary, role } => {
                if matches!(role, Private::Promiscuous(VlanSet::All)) {
                    return Err(VlanError::Unbounded);
                }
                let secondary = role.secondary();
                let valid = |v: &Vlan| (1..=LAST).contains(v);
                let fine = valid(primary) && !secondary.is_empty();
                match fine && secondary.iter().all(|s| valid(s) && s != primary) {
                    true => Ok(()),
                    false => Err(VlanError::NotPrivate),
                }
            }
        }
    }

    /// The VLAN of a frame that comes by the port, and whether its tag belongs to that, not to the guest's own business; `None`: it may
    /// not come. A tag with nothing but a priority counts as none.
    pub fn of_incoming(&self, tag: Option<Tag>) -> Option<Vlan> {
        let tagged = tag.map(Tag::vlan).filter(|v| *v != 0);
        match (self, tagged) {
            (Self::Access(vlan), None) => Some(*vlan),
            (Self::Trunk { native, .. }, None) => Some(*native),
            (Self::Trunk { native, allowed }, Some(vlan)) => {
                (vlan <= LAST && (allowed.has(vlan) || vlan == *native)).then_some(vlan)
            }
            (Self::Private { primary, role }, None) => Some(match role {
                Private::Isolated(own) | Private::Community(own) => *own,
                Private::Promiscuous(_) => *primary,
            }),
            (Self::Access(_) | Self::Private { .. }, Some(_)) => None,
        }
    }

    /// With which tag a frame that came in a VLAN leaves by the port, if it may: `Some(None)` is without. `priority` is what the tag
    /// says besides.
    pub fn of_outgoing(&self, came: Vlan, priority: Tag) -> Option<Option<Tag>> {
        let untagged = |may: bool| may.then_some(None);
        match self {
            Self::Access(vlan) => untagged(*vlan == came),
            Self::Trunk { native, .. } if *native == came => Some(None),
            // What came without a tag can have none on a trunk that has another native VLAN.
            Self::Trunk { allowed, .. } => {
                (came != 0 && allowed.has(came)).then(|| Some(priority.with_vlan(came)))
            }
            Self::Private { primary, role } => untagged(match role {
                Private::Isolated(_) => came == *primary,
                Private::Community(own) => came == *primary || came == *own,
                Private::Promiscuous(secondary) => came == *primary || secondary.has(came),
            }),
        }
    }
}

impl Private {
    fn secondary(&self) -> Vec<Vlan> {
        match self {
            Self::Isolated(own) | Self::Community(own) => vec![*own],
            Self::Promiscuous(all) => all.members().collect(),
        }
    }
}

/// Where stations are learned: those of a private VLAN all in its primary one, as they answer each other in different VLANs.
#[derive(Clone, Debug, Default)]
pub struct Learning(BTreeMap<Vlan, Vlan>);

impl Learning {
    /// With ports of these modes.
    pub fn of<'a>(modes: impl Iterator<Item = &'a VlanMode>) -> Self {
        let mut primaries = BTreeMap::new();
        for mode in modes {
            if let VlanMode::Private { primary, role } = mode {
                primaries.extend(role.secondary().into_iter().map(|s| (s, *primary)));
            }
        }
        Self(primaries)
    }

    /// Whether who is behind a port of that mode is where stations of a place are.
    pub fn is_at(&self, mode: &VlanMode, place: Vlan) -> bool {
        match mode {
            VlanMode::Access(vlan) => self.place(*vlan) == place,
            VlanMode::Trunk { native, allowed } => {
                let has = |vlan: Vlan| vlan != 0 && allowed.has(vlan);
                self.place(*native) == place
                    || has(place)
                    || self.0.iter().any(|(secondary, primary)| *primary == place && has(*secondary))
            }
            VlanMode::Private { primary, .. } => *primary == place,
        }
    }

    /// Whether there is a place where both are.
    pub fn meet(&self, one: &VlanMode, other: &VlanMode) -> bool {
        // All places of the one that are few, in the other one.
        let among = |few: &VlanMode, other: &VlanMode| match few {
            VlanMode::Access(vlan) => self.is_at(other, self.place(*vlan)),
            VlanMode::Private { primary, .. } => self.is_at(other, *primary),
            VlanMode::Trunk { native, allowed } => {
                self.is_at(other, self.place(*native))
                    || allowed.members().filter(|v| *v != 0).any(|v| self.is_at(other, self.place(v)))
            }
        };
        let all = |mode: &VlanMode| matches!(mode, VlanMode::Trunk { allowed: VlanSet::All, .. });
        all(one) && all(other) || among(one, other) || among(other, one)
    }

    /// Where those that send in a VLAN are.
    pub fn place(&self, came: Vlan) -> Vlan {
        self.0.get(&came).copied().unwrap_or(came)
    }
}
