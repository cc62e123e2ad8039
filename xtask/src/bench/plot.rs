//! The plot: time against number of devices, both logarithmic.

use std::fmt::Write as _;

use super::figures::Run;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
/// The area of the curves.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 610.0;
const TOP: f64 = 52.0;
const BOTTOM: f64 = 460.0;
/// The minimum distance between two labels.
const LABEL: f64 = 17.0;

/// The curves: name of the figure, label, colour, whether dashed. libibverbs is red, this library blue.
const CURVES: [(&str, &str, &str, bool); 8] = [
    ("list_ibverbs", "ibv_get_device_list", "#c0392b", false),
    ("first_list_ibverbs", "the first of a process", "#c0392b", true),
    ("first_list", "uverbs: first list", "#1f5fa8", true),
    ("rescan", "uverbs: list again", "#1f5fa8", false),
    ("rescan_watched", "the same, watched", "#6fa8dc", false),
    ("sweep", "names of both directories", "#666666", false),
    ("open", "uverbs: open, close", "#2a9d8f", false),
    ("open_ibverbs", "ibv_open_device, close", "#e08e45", false),
];

/// The last run as a picture.
pub(crate) fn svg(runs: &[Run]) -> String {
    let Some(run) = runs.last() else { return String::new() };
    let sizes = run.sizes();
    let medians = || run.times.values().map(|times| times.median).filter(|median| *median > 0.0);
    // Whole powers of ten around the figures.
    let y_from = medians().fold(f64::INFINITY, f64::min).log10().floor();
    let y_to = medians().fold(1.0, f64::max).log10().ceil();
    let x_to = sizes.last().map_or(1.0, |&most| (most as f64).log10().max(1.0));
    let x = |devices: usize| LEFT + (devices as f64).log10() / x_to * (RIGHT - LEFT);
    let y = |time: f64| BOTTOM - (time.log10() - y_from) / (y_to - y_from) * (BOTTOM - TOP);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">Time of a call against the number of devices (medians, Linux {}, emulated)</text>\n",
        run.kernel
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = svg.write_fmt(text);
        svg.push('\n');
    };
    for power in y_from as i32..=y_to as i32 {
        let at = y(10_f64.powi(power));
        line(format_args!(
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            duration(power)
        ));
    }
    for &devices in &sizes {
        let at = x(devices);
        line(format_args!(
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{BOTTOM}\" stroke=\"#dddddd\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{devices}</text>",
            BOTTOM + 20.0
        ));
    }
    line(format_args!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">devices</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 42.0
    ));
    let mut labels = Vec::new();
    for (name, label, colour, dashed) in CURVES {
        let points: Vec<_> = sizes
            .iter()
            .filter_map(|&devices| Some((x(devices), y(run.time(name, devices)?.median))))
            .collect();
        let Some(&(_, end)) = points.last() else { continue };
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dashes = if dashed { " stroke-dasharray=\"6 4\"" } else { "" };
        line(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>",
            path.join(" ")
        ));
        for (x, y) in points {
            line(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
        }
        labels.push((end, label, colour));
    }
    // Labels next to the ends of the curves, without overlap.
    labels.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
    let mut lowest = f64::NEG_INFINITY;
    for (end, label, colour) in labels {
        let at = end.max(lowest + LABEL);
        lowest = at;
        line(format_args!(
            "<line x1=\"{:.1}\" y1=\"{end:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{label}</text>",
            RIGHT + 4.0,
            RIGHT + 24.0,
            RIGHT + 28.0,
            at + 4.0
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A power of ten microseconds.
fn duration(power: i32) -> String {
    match power {
        ..=2 => format!("{} us", 10_f64.powi(power)),
        3..=5 => format!("{} ms", 10_f64.powi(power - 3)),
        _ => format!("{} s", 10_f64.powi(power - 6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::TEXT;

    #[test]
    fn a_plot_of_the_available_figures() {
        let svg = svg(&[Run::parse(TEXT).expect("read")]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("ibv_get_device_list") && svg.contains("100 ms"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
