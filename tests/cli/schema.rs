//! The document of `broker status --json`, beside what docs/status-json.md says of it.

use super::status::full_swing;
use super::*;

/// Every key of a document, by its path; `[]` stands for any entry of a list.
fn keys_of(
    value: &serde_json::Value,
    path: &str,
    found: &mut std::collections::BTreeMap<String, &'static str>,
) {
    use serde_json::Value;
    let kind = match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                keys_of(value, &path, found);
            }
            return;
        }
        Value::Array(values) => {
            for value in values {
                keys_of(value, &format!("{path}[]"), found);
            }
            return;
        }
        Value::Bool(_) => "truth",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Null => "null",
    };
    let known = found.entry(path.to_owned()).or_insert(kind);
    if *known == "null" {
        *known = kind;
    }
}

#[test]
fn the_document_of_status_is_described_key_by_key() {
    let mut view = costly();
    let caps = view.money.as_mut().unwrap();
    (caps.cap_hour, caps.cap_month) = (Some(5.0), Some(200.0));
    view.builders[2].progress = Some("imds closed".to_owned());
    view.builders[0].load = Some(full_swing());
    view.builders[0].shortage = Some("short of memory".to_owned());
    view.builds[1].remaining = Some(480.0);
    let (run, _) = Desk::new().ask(&["status", "--json"], vec![OperatorReply::Status(view)]);
    let document: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    let mut printed = std::collections::BTreeMap::new();
    keys_of(&document, "", &mut printed);
    // An entry that is missing in one place is described by its keys in another.
    let paths: Vec<String> = printed.keys().cloned().collect();
    printed.retain(|path, _| !paths.iter().any(|other| other.starts_with(&format!("{path}."))));
    let described: std::collections::BTreeMap<String, &str> = include_str!("../../docs/status-json.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(key, rest)| (key.to_owned(), rest.split(" |").next().unwrap()))
        .collect();
    assert_eq!(printed, described, "what is printed, and what docs/status-json.md says");
}
