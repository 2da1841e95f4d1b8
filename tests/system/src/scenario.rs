//! The table of refusals: what is wrong with a job, and how it must end. The same table can be run against another
//! cloud; a row says where that cannot be.

use serde_json::Value;

/// One row of `scenarios.json`.
#[derive(Debug, Clone)]
pub struct Row {
    /// Unique; part of the job id.
    pub name: String,
    /// What is changed in a good document, as a merge patch (RFC 7396).
    pub patch: Value,
    /// What the image server does instead of serving the image as it is.
    pub serve: Option<String>,
    /// How the job ends.
    pub status: String,
    /// What its reason says.
    pub reason: String,
    /// Why ministack cannot run the row, where it cannot.
    pub not_on_ministack: Option<String>,
}

/// All rows.
///
/// # Panics
/// When the table cannot be read: it is part of the tests.
#[must_use]
pub fn rows() -> Vec<Row> {
    let table: Vec<Value> = serde_json::from_str(include_str!("../scenarios.json")).expect("scenarios.json");
    let text = |row: &Value, key: &str| row[key].as_str().map(str::to_owned);
    let row = |row: &Value| Row {
        name: text(row, "name").expect("a name"),
        patch: row["document"].clone(),
        serve: text(row, "serve"),
        status: text(row, "status").expect("a status"),
        reason: text(row, "reason").expect("a reason"),
        not_on_ministack: match &row["ministack"] {
            Value::Bool(true) => None,
            why => Some(why.as_str().and_then(|why| why.strip_prefix("no: ")).expect("`no: why`").to_owned()),
        },
    };
    table.iter().map(row).collect()
}

/// Applies a merge patch (RFC 7396).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(target) = target {
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_unique_and_every_status_is_an_end() {
        let rows = rows();
        let mut names: Vec<_> = rows.iter().map(|row| row.name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), rows.len());
        assert!(rows.iter().all(|row| matches!(row.status.as_str(), "FAILED" | "REJECTED" | "SUCCEEDED")));
        assert!(rows.iter().filter_map(|row| row.not_on_ministack.as_ref()).all(|why| why.len() > 10));
    }

    #[test]
    fn null_takes_a_member_away_and_objects_are_merged() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "d": 3});
        merge(&mut value, &json!({"a": {"b": null, "e": 4}, "d": [5]}));
        assert_eq!(value, json!({"a": {"c": 2, "e": 4}, "d": [5]}));
    }
}
