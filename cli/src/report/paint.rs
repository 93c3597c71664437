//! Colours on a terminal.

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colours for a terminal, unless the user does not want any.
    pub fn for_stream(is_terminal: bool) -> Paint {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Paint { on: is_terminal && !refused && !dumb }
    }

    /// No colours.
    pub fn none() -> Paint {
        Paint { on: false }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// What is read first.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What is read last.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// What went well.
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// What went wrong.
    pub fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// A second colour for what is neither.
    pub fn blue(self, text: &str) -> String {
        self.wrap("34", text)
    }

    /// What to look at.
    pub fn amber(self, text: &str) -> String {
        self.wrap("33", text)
    }
}
