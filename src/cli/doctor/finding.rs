//! What a check has to say.

use serde::Serialize;

use crate::cli::output::{Document, Mark};

/// One judgement, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Finding {
    pub(in crate::cli) mark: Mark,
    pub(in crate::cli) text: String,
    pub(in crate::cli) hint: Option<String>,
}

impl Finding {
    pub(in crate::cli) fn ok(text: impl Into<String>) -> Self {
        Self { mark: Mark::Ok, text: text.into(), hint: None }
    }

    pub(in crate::cli) fn note(text: impl Into<String>) -> Self {
        Self { mark: Mark::Note, ..Self::ok(text) }
    }

    pub(in crate::cli) fn warn(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { mark: Mark::Warn, text: text.into(), hint: Some(hint.into()) }
    }

    pub(in crate::cli) fn fail(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { mark: Mark::Fail, ..Self::warn(text, hint) }
    }

    pub(in crate::cli) fn print(&self, document: &mut Document) {
        document.marked(self.mark, &self.text, self.hint.as_deref());
    }
}

/// A finding in JSON.
#[derive(Serialize)]
pub(in crate::cli) struct FindingView<'a> {
    level: &'static str,
    text: &'a str,
    hint: Option<&'a str>,
}

impl<'a> From<&'a Finding> for FindingView<'a> {
    fn from(finding: &'a Finding) -> Self {
        Self { level: finding.mark.word(), text: &finding.text, hint: finding.hint.as_deref() }
    }
}
