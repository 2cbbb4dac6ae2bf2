//! `name = value` lines, as the scripts of this directory print them: read with bounds, and with tolerance for whatever
//! else a login prints.

/// More than any of the scripts prints; what comes after it is not looked at.
const MAX_BYTES: usize = 64 * 1024;
/// Of one value, in characters.
const MAX_VALUE: usize = 1000;

/// What a script printed.
pub(super) struct Answer {
    text: String,
}

impl Answer {
    pub(super) fn new(stdout: &[u8]) -> Self {
        let stdout = stdout.get(..MAX_BYTES).unwrap_or(stdout);
        Self { text: String::from_utf8_lossy(stdout).into_owned() }
    }

    /// All values of this name, in their order, without control characters.
    pub(super) fn values(&self, name: &'static str) -> impl Iterator<Item = String> {
        self.text.lines().filter_map(move |line| {
            let value = line.strip_prefix(name)?.strip_prefix(" =")?.trim();
            Some(value.chars().filter(|c| !c.is_control()).take(MAX_VALUE).collect())
        })
    }

    /// The first value of this name, when it is not empty.
    pub(super) fn value(&self, name: &'static str) -> Option<String> {
        self.values(name).find(|value| !value.is_empty())
    }

    /// The same as a number that is one.
    pub(super) fn number(&self, name: &'static str) -> Option<f64> {
        self.value(name)?.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
    }
}
