//! Mutants: plausible mistakes in the code that ships. A model says something only if it fails on the mistakes that it is
//! meant to find.
//!
//! Each has a name, and the code asks for it where the mistake would be:
//!
//! ```text
//! if !mutant!("nobody is woken") {           every other build: if !false, and no trace of the name is left
//!     self.changed.notify_all();             a model: whether DEVPAGEMAP_MUTANT is that name
//! }
//! ```
//!
//! So one build of the models has all mutants. The variable is read once, by std's own means: asking is no step of a model,
//! and a model has the same executions as if nobody asked.

/// Whether the mutant of this name is the one that this process runs with. Constant and false outside of models.
#[cfg(not(any(loom, shuttle)))]
#[doc(hidden)]
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        false
    };
}

/// Whether the mutant of this name is the one that this process runs with.
#[cfg(any(loom, shuttle))]
#[doc(hidden)]
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::sync::mutants::is_chosen($name)
    };
}

/// The variable that names the mutant.
#[cfg(any(loom, shuttle))]
pub const VARIABLE: &str = "DEVPAGEMAP_MUTANT";

/// The mutant that this process runs with.
#[cfg(any(loom, shuttle))]
pub fn chosen() -> Option<&'static str> {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var(VARIABLE).ok()).as_deref()
}

/// Whether it is this one.
#[cfg(any(loom, shuttle))]
pub fn is_chosen(name: &str) -> bool {
    chosen() == Some(name)
}
