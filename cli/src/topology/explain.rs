//! `devpagemap explain` on the terminal: the decision, every reason for it, the way bridge by bridge, and what would make it better.

use super::devices::Device;
use super::survey::{Part, Question, Survey};
use crate::report::paint::Paint;
use devpagemap::pagemap::{Decision, Explanation, LatencyClass, Reason};
use devpagemap::topology::Rate;
use std::fmt::Write;

/// All that there is to say.
pub fn render(survey: &Survey, question: &Question, paint: Paint) -> String {
    let mut out = String::new();
    let (exporter, importer) = (&survey.devices[question.exporter], &survey.devices[question.importer]);
    let _infallible = writeln!(
        out,
        "\n  {} reaches the memory of {}",
        paint.bold(&told(importer)),
        paint.bold(&told(exporter))
    );
    for (part, explanation) in &question.answers {
        answer(&mut out, *part, explanation, paint);
    }
    let path = survey.path(question.exporter, question.importer);
    let _infallible = writeln!(out, "\n  {}", paint.bold("Way"));
    for line in path.describe(&survey.machine).to_string().lines() {
        let _infallible = writeln!(out, "    {line}");
    }
    let label = path.label();
    let _infallible = writeln!(out, "    {}", paint.dim(&format!("{}: {}", label.symbol(), label.legend())));
    out
}

/// `GPU0, 0000:3d:00.0 (card0)`.
fn told(device: &Device) -> String {
    let mut text = device.short_name();
    if text != device.name {
        let _infallible = write!(text, ", {}", device.name);
    }
    let others: Vec<&str> =
        device.names.iter().map(String::as_str).filter(|name| *name != device.name).collect();
    if !others.is_empty() {
        let _infallible = write!(text, " ({})", others.join(", "));
    }
    text
}

fn answer(out: &mut String, part: Part, explanation: &Explanation, paint: Paint) {
    let decision = &explanation.decision;
    let of = match part {
        Part::All => "",
        Part::Visible => " for the part that the bus sees",
        Part::Hidden => " for the part that the bus does not see",
    };
    let route = decision.route.to_string();
    let route = match decision.p2p {
        Some(true) => paint.good(&route),
        Some(false) => paint.bad(&route),
        None => paint.amber(&route),
    };
    let _infallible = writeln!(out, "\n  {route}{of}");
    for (what, is) in facts(decision) {
        let _infallible = writeln!(out, "    {} {is}", paint.dim(&format!("{what:12}")));
    }
    let (better, why): (Vec<&Reason>, Vec<&Reason>) =
        explanation.reasons.iter().partition(|reason| matches!(reason, Reason::Would { .. }));
    listed(out, "Why", &why, explanation, paint);
    listed(out, "Better", &better, explanation, paint);
}

fn facts(decision: &Decision) -> [(&'static str, String); 5] {
    let known = |answer: Option<bool>| match answer {
        Some(true) => "yes".to_string(),
        Some(false) => "no".to_string(),
        None => "not known".to_string(),
    };
    let rate = decision.bandwidth_bytes_per_s.map(|rate| Rate(rate).to_string());
    let latency = match decision.latency {
        LatencyClass::Local => "local: the device's own memory",
        LatencyClass::Near => "near: a private link or one switch away",
        LatencyClass::Far => "far: through a host bridge or several switches",
        LatencyClass::Remote => "remote: across CPU packages, or with a copy in between",
    };
    [
        ("peer-to-peer", known(decision.p2p)),
        ("bandwidth", rate.unwrap_or("not known".to_string())),
        ("carries", decision.direction.to_string()),
        ("atomics", known(decision.atomics)),
        ("latency", latency.to_string()),
    ]
}

fn listed(out: &mut String, title: &str, reasons: &[&Reason], explanation: &Explanation, paint: Paint) {
    if reasons.is_empty() {
        return;
    }
    let _infallible = writeln!(out, "\n  {}", paint.bold(title));
    for (index, reason) in reasons.iter().enumerate() {
        let text = reason.about(&explanation.importer, &explanation.exporter);
        let _infallible = writeln!(out, "    {}. {text}", index + 1);
    }
}
