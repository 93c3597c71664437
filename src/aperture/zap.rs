//! Those who follow a window without keeping it.

use std::ops::Range;

/// A mapping that uses a window but does not keep it: when the window is taken away, it is told, and finds its bytes anew when
/// it is next used.
///
/// A CPU mapping is one: its page tables are cleared, and the next touch faults. See
/// [`Window::follow`](super::Window::follow).
pub trait Zap: Send + Sync {
    /// The window with these bytes of the buffer is taken away. Once this has returned, no access of the follower goes through
    /// it any more.
    ///
    /// Called by whoever wants the space or moves the buffer, with reservations of other buffers held but no inner lock: it
    /// may take locks of its own that nobody holds while asking for a window, and must neither wait for fences nor call back
    /// into the device.
    fn zap(&self, bytes: &Range<u64>);
}
