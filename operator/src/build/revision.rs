//! The name of everything that makes workers what they are.

use serde_json::{Map, Value, json};

use crate::api::WorkerSpec;

/// Eight hexadecimal digits, the same for the same specs. The order of fields in the types does not
/// matter to it. Routers, replicas and whatever else is not in the specs have no part in it.
pub fn revision(prefill: Option<&WorkerSpec>, decode: &WorkerSpec) -> String {
    let both = sorted(json!({ "prefill": prefill, "decode": decode }));
    let hash = blake3::hash(both.to_string().as_bytes());
    hash.to_hex()[..8].to_owned()
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            let fields = fields.into_iter().map(|(key, value)| (key, sorted(value)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
