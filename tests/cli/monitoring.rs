//! The monitoring files: every metric they name is one that a node exports.

use crate::support::{Node, chain};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// What a name in a query may be besides a metric: functions, keywords and labels.
const NOT_METRICS: [&str; 7] = [
    "group_right",
    "group_left",
    "histogram_quantile",
    "min_over_time",
    "max_over_time",
    "label_values",
    "count_over_time",
];

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The metrics in a query: names with an underscore that are neither functions nor text in quotes.
fn metrics_of(query: &str) -> BTreeSet<String> {
    let outside: String = query.split('"').step_by(2).collect();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = outside.split(|c| !is_name(c)).filter(|name| name.contains('_') && !NOT_METRICS.contains(name));
    names.map(str::to_owned).collect()
}

/// The `expr` of every panel, however deep.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_str() {
                    Some(text) if name == "expr" || name == "query" => found.push(text.to_owned()),
                    _ => queries(member, found),
                }
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| queries(element, found)),
        _ => {}
    }
}

#[test]
fn every_metric_in_rules_and_dashboard_is_exported() {
    let home = chain();
    let node = Node::start(home.path(), &[]);
    // The series of a route begins with its first request.
    node.get("/healthz");
    let (_, text) = node.get("/metrics");
    // A counter is described without its ending, a histogram without those of its parts.
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let exported: BTreeSet<String> = described
        .flat_map(|(name, kind)| match kind.trim() {
            "counter" => vec![format!("{name}_total")],
            "histogram" => ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).to_vec(),
            _ => vec![name.to_owned()],
        })
        .collect();

    let rules = file("alerts.yml");
    let mut named: Vec<String> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned).collect();
    assert_eq!(named.len(), rules.matches("- alert: ").count(), "every rule has its expression on one line");
    let dashboard: Value = serde_json::from_str(&file("dashboard.json")).expect("the dashboard is JSON");
    queries(&dashboard, &mut named);
    assert!(named.len() > 25, "the dashboard's queries were not found");

    let used: BTreeSet<String> = named.iter().flat_map(|query| metrics_of(query)).collect();
    let unknown: Vec<&String> = used.difference(&exported).collect();
    assert!(unknown.is_empty(), "named in monitoring/, but not exported: {unknown:?}");
}

#[test]
fn every_alert_is_explained_and_tested() {
    let (rules, tests) = (file("alerts.yml"), file("alerts.test.yml"));
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring.md"))
        .expect("docs/monitoring.md is there");
    for name in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(docs.contains(&format!("`{name}`")), "docs/monitoring.md does not say what to do about {name}");
        let fires = tests.split("eval_time").any(|case| case.contains(&format!("alertname: {name}\n")));
        assert!(fires, "monitoring/alerts.test.yml has no case in which {name} fires");
    }
}
