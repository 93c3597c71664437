//! The declared lock order, checked by the compiler.
//!
//! One line at the bottom of this page is the truth: the levels, outermost first. Each level is a type, and
//! `L: Below<H>` holds exactly when `L` stands to the right of `H` on that line. A [`Lock`] belongs to a level, and
//! taking it costs a [`Held`] token of a level above it:
//!
//! ```text
//!     Held<Root> ──lock──▶ Guard<Device> ──split──▶ (&mut T, Held<Device>) ──lock──▶ Guard<Region> ...
//!         ▲                                              │
//!         └── borrowed until the guard is gone ◀─────────┘  borrowed until the inner guard is gone
//! ```
//!
//! A token is borrowed mutably by the guard it paid for, so while the inner lock is held the outer token cannot buy
//! a second lock. That gives the two compile errors on which this crate rests: a lock of a level at or above the
//! innermost held one ([E0277]), and a token used while something taken with it is still held ([E0499]).
//!
//! What the compiler sees and what [`lockdep`] has to see at run time, in debug builds and in models:
//!
//! | mistake | found by |
//! |---|---|
//! | an outer level, or the same, inside a lock | the compiler: `E0277`, which prints the order |
//! | an outer token used while an inner lock is held | the compiler: `E0499` |
//! | a token that outlives its guard, or a guard dropped under its token | the compiler: `E0597`, `E0505` |
//! | a token made from nothing, copied, cloned, kept in a static, sent to another thread, of another level | the compiler: see [below](#forged-tokens) |
//! | a level of one's own, or an order of one's own among the levels | the compiler: `E0277`, `E0117` |
//! | a second [`Held::enter`] inside a lock, in the same function or deep in what it calls | lockdep, where it is made |
//! | a second [`Held::enter`] made before the lock and used inside it | lockdep, where it is used; the report says where the roots were made |
//! | [`Held::enter`] inside a fence callback, or [`Held::in_destructor`] under an inner lock | lockdep, where it is made |
//! | two tickets, two single reservations | lockdep |
//! | locks without a level ([`Outside`](crate::Outside)), fences, signalling sections | lockdep |
//!
//! That a function is called where no token lives is nothing a type can say: whatever a callee needs to make one root it
//! can use to make another. So `enter` is for the outermost entry points alone, everything below takes `&mut Held`, and
//! what is left is found by the first run that gets there, without a second thread.
//!
//! ```
//! use devpagemap_fence::levels::{Device, Region};
//! use devpagemap_fence::{Held, Lock};
//!
//! let device = Lock::<Device, u32>::new("device", 1);
//! let region = Lock::<Region, u32>::new("region", 2);
//! let mut held = Held::enter();
//! let mut outer = device.lock(&mut held);
//! let (value, mut held) = outer.split();
//! *value += *region.lock(&mut held);
//! assert_eq!(*outer, 3);
//! ```
//!
//! The wrong order does not compile:
//!
//! ```compile_fail,E0277
//! use devpagemap_fence::levels::{Device, Region};
//! use devpagemap_fence::{Held, Lock};
//!
//! let device = Lock::<Device, u32>::new("device", 1);
//! let region = Lock::<Region, u32>::new("region", 2);
//! let mut held = Held::enter();
//! let mut outer = region.lock(&mut held);
//! let (_, mut held) = outer.split();
//! device.lock(&mut held); // the device lock is taken before the region lock, never after it
//! ```
//!
//! Nor do two locks of one level:
//!
//! ```compile_fail,E0277
//! use devpagemap_fence::levels::Region;
//! use devpagemap_fence::{Held, Lock};
//!
//! let vram = Lock::<Region, u32>::new("vram", 1);
//! let gtt = Lock::<Region, u32>::new("gtt", 2);
//! let mut held = Held::enter();
//! let mut outer = vram.lock(&mut held);
//! let (_, mut held) = outer.split();
//! gtt.lock(&mut held);
//! ```
//!
//! Nor does the use of an outer token while an inner lock is held:
//!
//! ```compile_fail,E0499
//! use devpagemap_fence::levels::{Device, Region};
//! use devpagemap_fence::{Held, Lock};
//!
//! let device = Lock::<Device, u32>::new("device", 1);
//! let region = Lock::<Region, u32>::new("region", 2);
//! let mut held = Held::enter();
//! let inner = region.lock(&mut held);
//! let outer = device.lock(&mut held); // `held` was spent on `inner`
//! drop(inner);
//! ```
//!
//! A token does not outlive the guard it came from, nor a guard its unlocking:
//!
//! ```compile_fail,E0597
//! use devpagemap_fence::levels::Device;
//! use devpagemap_fence::{Held, Lock};
//!
//! let device = Lock::<Device, u32>::new("device", 1);
//! let mut held = Held::enter();
//! let kept = {
//!     let mut guard = device.lock(&mut held);
//!     guard.split().1
//! };
//! ```
//!
//! ```compile_fail,E0505
//! use devpagemap_fence::levels::{Device, Region};
//! use devpagemap_fence::{Held, Lock};
//!
//! let device = Lock::<Device, u32>::new("device", 1);
//! let region = Lock::<Region, u32>::new("region", 2);
//! let mut held = Held::enter();
//! let mut outer = device.lock(&mut held);
//! let (_, mut inner) = outer.split();
//! drop(outer);
//! region.lock(&mut inner);
//! ```
//!
//! # Forged tokens
//!
//! None can be made but by the two functions for it. The fields are private, and so is what the library itself uses:
//!
//! ```compile_fail,E0451
//! use devpagemap_fence::levels::{Held, Root};
//! use std::marker::PhantomData;
//!
//! let forged: Held<'static, Root> = Held { lifetime: PhantomData, not_send: PhantomData };
//! ```
//!
//! ```compile_fail,E0624
//! use devpagemap_fence::levels::{Held, Root};
//!
//! let forged = Held::<'static, Root>::token();
//! ```
//!
//! ```compile_fail,E0599
//! use devpagemap_fence::levels::{Held, Root};
//!
//! let forged: Held<'static, Root> = Held::default();
//! ```
//!
//! ```compile_fail,E0133
//! use devpagemap_fence::levels::{Held, Root};
//!
//! let forged: Held<'static, Root> = std::mem::zeroed(); // only `unsafe` code could
//! ```
//!
//! One token stays one:
//!
//! ```compile_fail,E0599
//! use devpagemap_fence::Held;
//!
//! let held = Held::enter();
//! let twin = held.clone();
//! ```
//!
//! ```compile_fail,E0382
//! use devpagemap_fence::levels::Region;
//! use devpagemap_fence::{Held, Lock};
//!
//! let region = Lock::<Region, u32>::new("region", 2);
//! let mut held = Held::enter();
//! let twin = held;
//! region.lock(&mut held);
//! ```
//!
//! A token of an inner level is no root, and a callback's token pays for no reservation:
//!
//! ```compile_fail,E0308
//! use devpagemap_fence::levels::{Region, Root};
//! use devpagemap_fence::{Held, Lock};
//!
//! fn from_the_outside(_held: &mut Held<'_, Root>) {}
//!
//! let region = Lock::<Region, u32>::new("region", 2);
//! let mut held = Held::enter();
//! let mut guard = region.lock(&mut held);
//! let (_, mut inner) = guard.split();
//! from_the_outside(&mut inner);
//! ```
//!
//! ```compile_fail,E0277
//! use devpagemap_fence::{Held, Reservation, Timeline};
//! use std::sync::Arc;
//!
//! let timeline = Timeline::new("ring");
//! let buffer = Arc::new(Reservation::new(0));
//! let hung = timeline.next_point().on_signal(move |_| {
//!     let mut held = Held::in_destructor();
//!     buffer.lock(&mut held);
//! });
//! ```
//!
//! It stays in its thread, and in no static, from which another thread could take it:
//!
//! ```compile_fail,E0277
//! use devpagemap_fence::Held;
//!
//! let held = Held::enter();
//! std::thread::spawn(move || drop(held));
//! ```
//!
//! ```compile_fail,E0277
//! use devpagemap_fence::levels::{Held, Root};
//! use std::sync::Mutex;
//!
//! static KEPT: Mutex<Option<Held<'static, Root>>> = Mutex::new(None);
//! ```
//!
//! And nobody adds to the order:
//!
//! ```compile_fail,E0277
//! use devpagemap_fence::levels::Level;
//!
//! enum Mine {}
//! impl Level for Mine {
//!     const RANK: u8 = 0;
//!     const NAME: &'static str = "Mine";
//! }
//! ```
//!
//! ```compile_fail,E0117
//! use devpagemap_fence::levels::{Below, Device, Region};
//!
//! impl Below<Region> for Device {}
//! ```
//!
//! [E0277]: https://doc.rust-lang.org/error_codes/E0277.html
//! [E0499]: https://doc.rust-lang.org/error_codes/E0499.html

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use crate::lockdep;
use crate::sync::{Condvar, Mutex, MutexGuard};

mod sealed {
    /// Only the declaration below makes levels.
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is no level of the lock order",
        note = "the levels are declared in one line, at the bottom of devpagemap-fence's levels.rs"
    )]
    pub trait Declared {}
}

/// A level of the lock order. The levels are those of this module; others cannot be made.
pub trait Level: sealed::Declared + 'static {
    /// Position in the order; the outermost level has the smallest rank.
    const RANK: u8;
    /// The level's name, as it stands in the declaration.
    const NAME: &'static str;
}

/// Proof that `H` is the innermost level this thread holds; zero-sized, and bound to its thread.
///
/// A function that takes locks of its own asks for `&mut Held<'_, H>` with the bound `ItsLevel: Below<H>`, which
/// tells its callers what they may hold.
pub struct Held<'a, H: Level> {
    lifetime: PhantomData<&'a mut H>,
    not_send: PhantomData<*mut ()>,
}

impl Held<'static, Root> {
    /// The token of a thread that holds nothing, for the outermost entry points.
    ///
    /// # Panics
    /// In debug builds and models, when this thread already holds a lock, and inside a fence callback, whose token is
    /// that of [`Held::in_destructor`].
    #[track_caller]
    pub fn enter() -> Self {
        lockdep::enter_root();
        Held::token()
    }
}

impl Held<'static, Tickets> {
    /// The token of a destructor or a fence callback: either may run while its thread holds reservations, and takes
    /// locks further in only.
    ///
    /// # Panics
    /// In debug builds and models, when this thread holds a lock of the region level or further in.
    #[track_caller]
    pub fn in_destructor() -> Self {
        lockdep::assert_may_signal();
        Held::token()
    }
}

impl<H: Level> Held<'_, H> {
    pub(crate) fn token() -> Self {
        Held { lifetime: PhantomData, not_send: PhantomData }
    }

    /// The same token for a shorter time, for functions that take it by value.
    pub fn reborrow(&mut self) -> Held<'_, H> {
        Held::token()
    }
}

impl<H: Level> fmt::Debug for Held<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held<{}>", H::NAME)
    }
}

/// A mutex at level `L`.
pub struct Lock<L: Level, T> {
    class: lockdep::ClassName, // constant
    mutex: Mutex<T>,
    level: PhantomData<fn() -> L>,
}

impl<L: Level, T> Lock<L, T> {
    /// A lock around `value`; `class` names it in the reports of [`lockdep`].
    pub fn new(class: &'static str, value: T) -> Self {
        Lock { class: lockdep::ClassName::new(class), mutex: Mutex::new(value), level: PhantomData }
    }

    /// Blocks until the lock is this thread's.
    ///
    /// # Panics
    /// In debug builds and models, when this thread holds a lock of the same or an inner level after all.
    #[inline]
    #[track_caller]
    pub fn lock<'a, H: Level>(&'a self, held: &'a mut Held<'_, H>) -> Guard<'a, L, T>
    where
        L: Below<H>,
    {
        let _ = held;
        self.acquire()
    }

    #[inline]
    #[track_caller]
    fn acquire(&self) -> Guard<'_, L, T> {
        let class = self.class.get();
        let record = lockdep::acquire(L::RANK, class, lockdep::ALONE).of(self.instance());
        Guard { guard: self.mutex.lock(), record, level: PhantomData }
    }

    /// Panics, in debug builds and models, unless this thread holds this very lock.
    #[inline]
    #[track_caller]
    pub fn assert_held(&self) {
        lockdep::assert_held(self.class.get(), self.instance());
    }

    fn instance(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// The value; no locking, as nobody else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.mutex.get_mut()
    }

    /// The value, the lock being gone.
    pub fn into_inner(self) -> T {
        self.mutex.into_inner()
    }
}

impl<T> Lock<Timeline, T> {
    /// Locks at the leaf level, below which there is nothing, without a token.
    #[inline]
    #[track_caller]
    pub(crate) fn lock_leaf(&self) -> Guard<'_, Timeline, T> {
        self.acquire()
    }
}

impl<L: Level, T> fmt::Debug for Lock<L, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lock<{}>({:?})", L::NAME, self.class)
    }
}

/// Access to the value of a [`Lock`], until dropped.
pub struct Guard<'a, L: Level, T> {
    guard: MutexGuard<'a, T>, // dropped first: what lockdep says is held is never less than what is held
    record: lockdep::Record,
    level: PhantomData<L>,
}

impl<L: Level, T> Guard<'_, L, T> {
    /// The value, and the token with which to lock further below while it is borrowed.
    pub fn split(&mut self) -> (&mut T, Held<'_, L>) {
        (&mut self.guard, Held::token())
    }

    /// Gives the lock back while waiting for a notification, then has it again. May return without one.
    #[track_caller]
    pub fn wait(self, condvar: &Condvar) -> Self {
        let Guard { guard, record, level } = self;
        Guard { guard: condvar.wait(guard), record, level }
    }

    /// As [`wait`](Guard::wait), but no later than `deadline`; true when the deadline passed.
    #[cfg(not(any(loom, shuttle)))]
    pub fn wait_until(self, condvar: &Condvar, deadline: std::time::Instant) -> (Self, bool) {
        let Guard { guard, record, level } = self;
        let (guard, timed_out) = condvar.wait_until(guard, deadline);
        (Guard { guard, record, level }, timed_out)
    }
}

impl<L: Level, T> Deref for Guard<'_, L, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<L: Level, T> DerefMut for Guard<'_, L, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<L: Level, T: fmt::Debug> fmt::Debug for Guard<'_, L, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Writes the level types, their ranks and every `Below` from the one declared line. The text beside it is for the
/// compiler's message, whose attribute takes nothing but a literal; that the two agree is checked when this is compiled.
macro_rules! lock_order {
    ($text:literal $(#[$outermost_doc:meta])* $outermost:ident $(> $(#[$doc:meta])* $level:ident)+) => {
        /// `L: Below<H>`: a lock of level `L` may be taken while `H` is the innermost held level.
        #[diagnostic::on_unimplemented(
            message = "a `{Self}` lock may not be taken while a `{H}` lock is held",
            label = "`{Self}` does not stand below `{H}` in the lock order",
            note = $text,
            note = "take `{Self}` first, or let go of `{H}`"
        )]
        pub trait Below<H: Level>: Level {}

        $(#[$outermost_doc])* #[derive(Debug)] pub enum $outermost {}
        $($(#[$doc])* #[derive(Debug)] pub enum $level {})+
        /// The names of the levels, outermost first; a level's rank is its index.
        pub const ORDER: &[&str] = &[stringify!($outermost), $(stringify!($level)),+];
        const _: () = assert!(is_same(
            $text.as_bytes(),
            concat!("the lock order, outermost first: ", stringify!($outermost), $(" > ", stringify!($level)),+).as_bytes(),
        ));
        lock_order!(@rank 0, $outermost $($level)+);
        lock_order!(@below $outermost $($level)+);
    };
    (@rank $rank:expr, $level:ident $($inner:ident)*) => {
        impl sealed::Declared for $level {}
        impl Level for $level {
            const RANK: u8 = $rank;
            const NAME: &'static str = stringify!($level);
        }
        lock_order!(@rank $rank + 1, $($inner)*);
    };
    (@rank $rank:expr,) => {};
    (@below $outer:ident $($inner:ident)*) => {
        $(impl Below<$outer> for $inner {})*
        lock_order!(@below $($inner)*);
    };
    (@below) => {};
}

const fn is_same(left: &[u8], right: &[u8]) -> bool {
    let mut index = 0;
    while index < left.len() && index < right.len() && left[index] == right[index] {
        index += 1;
    }
    index == left.len() && index == right.len()
}

lock_order! {
    "the lock order, outermost first: Root > Registry > Device > Tickets > Region > Aperture > MoveQueue > Timeline"

    /// Nothing is held.
    Root >
    /// The registry of owners and pagemaps.
    Registry >
    /// A device's own tables.
    Device >
    /// Reservations of buffers, among themselves ordered by the age of their ticket.
    Tickets >
    /// A region's allocator and LRU lists. Reservations may only be tried from here on.
    Region >
    /// The BAR aperture's windows.
    Aperture >
    /// The move queue's lanes.
    MoveQueue >
    /// Timelines and the insides of fences: the leaf.
    Timeline
}
