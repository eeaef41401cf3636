//! Rule about documents: a relative link leads to a file that is there.

use std::path::Path;

use super::File;

pub(super) fn check(root: &Path, files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let directory = root.join(&file.path).parent().unwrap_or(root).to_owned();
        for target in targets(&file.text) {
            let path = target.split('#').next().unwrap_or("");
            if !path.is_empty() && !path.contains(':') && !directory.join(path).exists() {
                complaints.push(format!("{}: link to {target}: no such file", file.path));
            }
        }
    }
    complaints
}

/// The targets of `[text](target)` in `text`.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("](").filter_map(|(at, open)| {
        let rest = &text[at + open.len()..];
        rest.split_once([')', '\n']).map(|(target, _)| target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_links() {
        let text = "see [a](b.md#c), [d](https://e) and\n[f](../g.md).";
        assert_eq!(targets(text).collect::<Vec<_>>(), ["b.md#c", "https://e", "../g.md"]);
    }
}
