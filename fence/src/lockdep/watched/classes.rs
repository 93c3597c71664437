//! Classes: the kinds of locks, by name and by where they stand in the order.
//!
//! All locks that are called the same and stand at the same level are one class. There are few, so that a set of classes is
//! one word; they are entered once and never leave.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::levels::{Level, ORDER, Tickets};

/// How many classes fit into a word.
pub(super) const CAPACITY: usize = 64;

/// Where a class stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// At the level of this rank.
    Level(u8),
    /// Between the reservations and the regions.
    Fence,
    /// Nowhere: the graph alone finds out.
    Outside,
}

impl Position {
    /// A number that is greater the further in the position is; none outside of the order.
    pub(super) fn depth(self) -> Option<u8> {
        match self {
            Position::Level(rank) => Some(2 * rank),
            Position::Fence => Some(2 * Tickets::RANK + 1),
            Position::Outside => None,
        }
    }
}

/// Names a class.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct ClassId(pub(super) u8);

impl ClassId {
    /// Waiting for fences, and signalling them.
    pub(super) const FENCE: ClassId = ClassId(0);
    /// Allocating what others may have to be evicted for.
    pub(super) const EVICTION: ClassId = ClassId(1);
    /// The first that is entered by name.
    const FIRST_NAMED: usize = 2;
    /// Stands for the classes that found no room.
    pub(super) const OVERFLOW: ClassId = ClassId(CAPACITY as u8 - 1);

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The set of this class alone.
    pub(super) fn bit(self) -> u64 {
        1 << self.0
    }
}

/// One kind of locks.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) name: &'static str,
    pub(super) position: Position,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match self.position {
            Position::Level(rank) => {
                let level = ORDER.get(usize::from(rank)).copied().unwrap_or("unknown");
                write!(f, "{name:?} (level {level})")
            }
            Position::Fence => f.write_str("fences"),
            Position::Outside => write!(f, "{name:?} (outside of the order)"),
        }
    }
}

/// There are more classes than lockdep can watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClassesExhausted {
    wanted: Class,
}

impl fmt::Display for ClassesExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = ClassId::OVERFLOW.index() - ClassId::FIRST_NAMED;
        write!(
            f,
            "lockdep watches at most {most} classes of locks and has no room for {}; locks of one kind share one name",
            self.wanted
        )
    }
}

impl std::error::Error for ClassesExhausted {}

/// Every class there is.
pub(super) struct Classes {
    /// Filled from `FIRST_NAMED` on, without gaps.
    named: [OnceLock<Class>; CAPACITY],
    /// Who may enter the next one.
    entering: Mutex<()>,
}

impl Classes {
    pub(super) const fn new() -> Classes {
        Classes { named: [const { OnceLock::new() }; CAPACITY], entering: Mutex::new(()) }
    }

    /// The class of this name and position, entered if it is new.
    pub(super) fn id(&self, name: &'static str, position: Position) -> Result<ClassId, ClassesExhausted> {
        let wanted = Class { name, position };
        if let Some(id) = self.find(&wanted) {
            return Ok(id);
        }
        let _entering = self.entering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = self.find(&wanted) {
            return Ok(id);
        }
        let room = self.slots().find(|(_, slot)| slot.get().is_none());
        let Some((id, slot)) = room else { return Err(ClassesExhausted { wanted }) };
        let entered = slot.set(wanted);
        debug_assert!(entered.is_ok(), "one thread enters at a time");
        Ok(id)
    }

    pub(super) fn get(&self, id: ClassId) -> Class {
        match id {
            ClassId::FENCE => Class { name: "fence", position: Position::Fence },
            ClassId::EVICTION => Class { name: "eviction", position: Position::Level(Tickets::RANK) },
            _ => {
                let nameless = Class { name: "one class too many", position: Position::Outside };
                self.named[id.index()].get().copied().unwrap_or(nameless)
            }
        }
    }

    /// Every class that was entered, and the pseudo-locks.
    pub(super) fn all(&self) -> impl Iterator<Item = (ClassId, Class)> + '_ {
        let pseudo = [ClassId::FENCE, ClassId::EVICTION].map(|id| (id, self.get(id)));
        let named = self.slots().map_while(|(id, slot)| Some((id, *slot.get()?)));
        pseudo.into_iter().chain(named)
    }

    fn find(&self, wanted: &Class) -> Option<ClassId> {
        let mut entered = self.slots().map_while(|(id, slot)| Some((id, slot.get()?)));
        entered.find(|(_, class)| *class == wanted).map(|(id, _)| id)
    }

    fn slots(&self) -> impl Iterator<Item = (ClassId, &OnceLock<Class>)> {
        let range = ClassId::FIRST_NAMED..ClassId::OVERFLOW.index();
        range.map(|index| (ClassId(index as u8), &self.named[index]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_at_one_level_is_one_class() {
        let classes = Classes::new();
        let id = |name, position| classes.id(name, position).unwrap();
        let vram = id("vram", Position::Level(4));
        assert_eq!(id("vram", Position::Level(4)), vram);
        assert_ne!(id("vram", Position::Level(5)), vram);
        assert_ne!(id("vram", Position::Outside), vram);
        assert_ne!(id("gtt", Position::Level(4)), vram);
        assert_eq!(classes.get(vram).to_string(), "\"vram\" (level Region)");
    }

    #[test]
    fn a_class_too_many_is_refused_by_name() {
        let classes = Classes::new();
        for rank in 0..CAPACITY as u8 - 3 {
            assert!(classes.id("one of many", Position::Level(rank)).is_ok());
        }
        let refused = classes.id("the last straw", Position::Outside).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("at most 61 classes") && text.contains("\"the last straw\""), "{text}");
        assert!(classes.id("one of many", Position::Level(3)).is_ok(), "those that are there stay");
    }
}
