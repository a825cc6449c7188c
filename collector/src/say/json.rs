//! One JSON object a line.

use super::{Field, Level, texts};
use serde_json::{Map, Value};
use std::time::{SystemTime, UNIX_EPOCH};

/// Without its end.
pub fn line(level: Level, fields: &[Field<'_>], message: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut object = Map::new();
    object.insert("time_unix_us".to_owned(), Value::from(now.as_micros() as u64));
    object.insert("level".to_owned(), Value::from(level.name()));
    object.insert("message".to_owned(), Value::from(message));
    object.extend(texts(fields).map(|(name, text)| (name.to_owned(), value(name, text))));
    Value::Object(object).to_string()
}

/// What has a unit in its name is a number; whether something is so, a boolean.
/// All else is text, also where it consists of digits: the name of a cgroup may.
fn value(name: &str, text: String) -> Value {
    let number = || text.parse::<u64>().ok().map(Value::from);
    let known = match name {
        "relieved" => text.parse::<bool>().ok().map(Value::from),
        _ if name.ends_with("_us") || name.ends_with("_bytes") => number(),
        _ => None,
    };
    known.unwrap_or(Value::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_whatever_it_says() {
        let text = line(
            Level::Notice,
            &[("cgroup", &"/a\"\n"), ("held_us", &7), ("pod_uid", &""), ("container_id", &12), ("relieved", &false)],
            "two\nlines",
        );
        assert!(!text.contains('\n'), "{text}");
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["level"], "notice");
        assert_eq!(object["message"], "two\nlines");
        assert_eq!((&object["cgroup"], &object["held_us"]), (&Value::from("/a\"\n"), &Value::from(7)));
        assert_eq!((&object["container_id"], &object["relieved"]), (&Value::from("12"), &Value::from(false)));
        assert!(object.get("pod_uid").is_none());
        assert!(object["time_unix_us"].as_u64().unwrap() > 1 << 50);
    }
}
