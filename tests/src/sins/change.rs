//! One change to a JSON object: what makes a good message a bad one.

use serde_json::Value;

/// What becomes of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// A member has another value.
    Set(&'static str, Value),
    /// A member is missing.
    Without(&'static str),
    /// A member stands there twice, with the same value.
    Twice(&'static str),
}

/// Values of types that no member of ours has where it is not meant.
pub fn wrong_values() -> Vec<Value> {
    let huge = "x".repeat(1500);
    ["null", "-1", "1.5", "1e300", "[]", "{}", "true", "[[[[]]]]"]
        .into_iter()
        .filter_map(|text| serde_json::from_str(text).ok())
        .chain([Value::String(String::new()), Value::String(huge)])
        .collect()
}

/// Returns each member's name with each way to spoil it.
pub fn spoil(names: &[&'static str]) -> Vec<(String, Change)> {
    let mut rows = Vec::new();
    for name in names.iter().copied() {
        rows.push((format!("without {name}"), Change::Without(name)));
        rows.push((format!("{name} twice"), Change::Twice(name)));
        for value in wrong_values() {
            let mut shown = value.to_string();
            shown.truncate(12);
            rows.push((format!("{name} = {shown}"), Change::Set(name, value)));
        }
    }
    rows
}

impl Change {
    /// Writes the object with its change.
    pub fn write(&self, object: &Value) -> String {
        let mut object = object.clone();
        match self {
            Self::Nothing => object.to_string(),
            Self::Set(name, value) => {
                object[*name] = value.clone();
                object.to_string()
            }
            Self::Without(name) => {
                object.as_object_mut().map(|members| members.remove(*name));
                object.to_string()
            }
            Self::Twice(name) => {
                let text = object.to_string();
                let open = text.strip_suffix('}').unwrap_or(&text);
                format!("{open},\"{name}\":{}}}", object[*name])
            }
        }
    }
}
