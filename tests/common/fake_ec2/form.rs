//! The requests of EC2's query protocol: a form with dots in the names.
//!
//! Owns their parsing, lists and filters included.

use std::collections::BTreeMap;

use super::Refusal;

/// A request's parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form(BTreeMap<String, String>);

impl Form {
    pub(crate) fn parse(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(name, value)| (decode(name), decode(value))).collect())
    }

    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The values of `name.1`, `name.2`, ...
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        (1..).map_while(|index| self.get(&format!("{name}.{index}")).map(str::to_owned)).collect()
    }

    /// The forms below `name.1`, `name.2`, ...
    pub(crate) fn forms(&self, name: &str) -> Vec<Self> {
        (1..)
            .map(|index| self.below(&format!("{name}.{index}")))
            .take_while(|form| !form.0.is_empty())
            .collect()
    }

    /// The form below `name`.
    pub(crate) fn below(&self, name: &str) -> Self {
        let prefix = format!("{name}.");
        let inside = self.0.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        Self(inside.map(|(key, value)| (key[prefix.len()..].to_owned(), value.clone())).collect())
    }

    /// The tags for what is made of this kind.
    pub(crate) fn tags_for(&self, resource: &str) -> BTreeMap<String, String> {
        let specs = self.forms("TagSpecification").into_iter();
        specs.filter(|spec| spec.get("ResourceType") == Some(resource)).flat_map(|spec| spec.tags()).collect()
    }

    /// The tags at `Tag.1`, ...
    pub(crate) fn tags(&self) -> BTreeMap<String, String> {
        let pair =
            |tag: Self| Some((tag.get("Key")?.to_owned(), tag.get("Value").unwrap_or_default().to_owned()));
        self.forms("Tag").into_iter().filter_map(pair).collect()
    }

    /// Everything but what may differ when a request is sent again.
    pub(crate) fn fingerprint(&self) -> Self {
        let kept = self.0.iter().filter(|(name, _)| *name != "ClientToken" && *name != "DryRun");
        Self(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Whether something with these attributes passes all filters. Several values of one attribute are alternatives.
    pub(crate) fn passes(&self, attribute: impl Fn(&str) -> Option<Vec<String>>) -> Result<bool, Refusal> {
        for filter in self.forms("Filter") {
            let name = filter.get("Name").unwrap_or_default();
            let wanted = filter.list("Value");
            if wanted.is_empty() {
                let words = format!("The filter '{name}' has no value");
                return Err(Refusal::new(400, "InvalidParameterValue", words));
            }
            let Some(values) = attribute(name) else {
                let words = format!("The filter '{name}' is invalid");
                return Err(Refusal::new(400, "InvalidParameterValue", words));
            };
            if !wanted.iter().any(|pattern| values.iter().any(|value| matches(pattern, value))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One page of this list, as (entries, token of the next).
    pub(crate) fn page<T: Clone>(&self, all: &[T], cap: usize) -> (Vec<T>, Option<String>) {
        let start =
            self.get("NextToken").and_then(|token| token.strip_prefix("page-")?.parse().ok()).unwrap_or(0);
        let size = self.get("MaxResults").and_then(|size| size.parse().ok()).unwrap_or(usize::MAX).min(cap);
        let page: Vec<T> = all.iter().skip(start).take(size).cloned().collect();
        let next = start.saturating_add(size);
        (page, (next < all.len()).then(|| format!("page-{next}")))
    }
}

/// The attributes that everything with tags has.
pub(crate) fn tag_attribute(tags: &BTreeMap<String, String>, name: &str) -> Option<Vec<String>> {
    match name.split_once(':') {
        Some(("tag", key)) => Some(tags.get(key).cloned().into_iter().collect()),
        _ if name == "tag-key" => Some(tags.keys().cloned().collect()),
        _ if name == "tag-value" => Some(tags.values().cloned().collect()),
        _ => None,
    }
}

/// `*` is anything, `?` one character.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    fn inner(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => inner(&pattern[1..], text) || (!text.is_empty() && inner(pattern, &text[1..])),
            (Some(b'?'), Some(_)) => inner(&pattern[1..], &text[1..]),
            (Some(wanted), Some(found)) if wanted == found => inner(&pattern[1..], &text[1..]),
            _ => false,
        }
    }
    inner(pattern.as_bytes(), text.as_bytes())
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = String::from_utf8_lossy(&digits).into_owned();
                bytes.extend(u8::from_str_radix(&digits, 16).ok());
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
