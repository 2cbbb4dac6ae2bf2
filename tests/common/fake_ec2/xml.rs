//! EC2's answers as documents.
//!
//! Owns their writing: escaping, lists, and the form of errors.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use super::{EPOCH, Refusal};

/// A whole answer.
pub(crate) fn document(root: &str, inside: &str) -> String {
    let space = "http://ec2.amazonaws.com/doc/2016-11-15/";
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root} xmlns=\"{space}\">\
         <requestId>11111111-2222-3333-4444-555555555555</requestId>{inside}</{root}>"
    )
}

/// A refusal.
pub(crate) fn error(refusal: &Refusal) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error>{}{}</Error></Errors>\
         <RequestID>99999999-8888-7777-6666-555555555555</RequestID></Response>",
        leaf("Code", &refusal.code),
        leaf("Message", &refusal.message)
    )
}

/// `<name>text</name>`
pub(crate) fn leaf(name: &str, text: impl Display) -> String {
    let text = text.to_string();
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    format!("<{name}>{text}</{name}>")
}

/// `<name>inside</name>`, where the inside is a document already.
pub(crate) fn node(name: &str, inside: impl Display) -> String {
    format!("<{name}>{inside}</{name}>")
}

/// `<name><item>...</item>...</name>`
pub(crate) fn list(name: &str, items: impl IntoIterator<Item = String>) -> String {
    let items: String = items.into_iter().map(|item| node("item", item)).collect();
    node(name, items)
}

/// `<name>text</name>`, or nothing.
pub(crate) fn optional(name: &str, text: Option<impl Display>) -> String {
    text.map(|text| leaf(name, text)).unwrap_or_default()
}

pub(crate) fn tags(tags: &BTreeMap<String, String>) -> String {
    list("tagSet", tags.iter().map(|(key, value)| leaf("key", key) + &leaf("value", value)))
}

/// What a request that only did something answers.
pub(crate) fn done() -> String {
    leaf("return", true)
}

/// A moment of the fake's clock, as EC2 writes it.
pub(crate) fn time(at: Duration) -> String {
    let seconds = EPOCH.unsigned_abs() + at.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 1970 as a date of the Gregorian calendar, counted from a first of March.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.000Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}
