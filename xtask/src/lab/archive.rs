//! The archive that the kernel unpacks into its first file system: `cpio`, format "newc"
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive under construction. Directories are added before what lies in them.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

impl Archive {
    /// Adds an empty directory.
    pub fn directory(&mut self, path: &str) {
        self.add(path, DIRECTORY, &[]);
    }

    /// Adds a file, which may be executed.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.add(path, PROGRAM, content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(path, LINK, target.as_bytes());
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Inode, mode, owner, group, links, time, size, device, device of a node, length of the
        // name with its end, and a checksum that this format leaves at zero.
        let (size, name) = (content.len() as u32, path.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_contents_are_aligned() {
        let mut archive = Archive::default();
        archive.directory("a");
        archive.file("a/b", b"12345");
        let bytes = archive.finish();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let heads: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        // 110 bytes of header, the name with its end, both rounded up; then the content likewise.
        assert_eq!(heads, [0, 112, 112 + 116 + 8]);
        assert_eq!(&text[112 + 116..112 + 116 + 5], "12345");
    }
}
