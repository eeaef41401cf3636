//! A device's one queue: descriptors of requests, and their data.
//!
//! The descriptors lie in memory of the kernel that is mapped here to be read. The kernel writes that of a request
//! before the fetch of that request completes, and not again before its result was committed; so it is copied out
//! once, then, and nothing of it is believed that was not looked at.
//!
//! Data: with `UBLK_F_USER_COPY`, by `pread(2)` and `pwrite(2)` of the character device, at an offset that
//! names the request. Without, the kernel copies a write's data to the request's buffer before the fetch completes, and a read's from it
//! when the result is committed.

use crate::error::QueueError;
use crate::features::Features;
use crate::info::DeviceInfo;
use crate::request::{IoCommand, Request, RequestError};
use crate::uapi::{IO_BUF_OFFSET, IO_DESC_BYTES, MAX_QUEUE_DEPTH, TAG_SHIFT};
use flagstone_ring::Command;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most requests that a queue can have under way.
pub const MAX_DEPTH: u16 = MAX_QUEUE_DEPTH;

/// Where the data of requests lies.
enum Data {
    /// In the kernel.
    Kernel,
    /// In one buffer for each request, so many bytes long.
    Buffers { memory: MmapRaw, bytes_each: usize },
}

/// A device's queue.
pub struct Queue {
    file: OwnedFd,
    descriptors: MmapRaw,
    depth: u16,
    data: Data,
    /// Commands that were made and have not ended.
    under_way: u32,
}

impl Queue {
    /// Opens the character device, which one process at a time can, and maps its descriptors.
    ///
    /// # Errors
    /// See [`QueueError`].
    pub fn open(device: &DeviceInfo) -> Result<Self, QueueError> {
        let &DeviceInfo { number, queues, depth, .. } = device;
        if queues != 1 || depth == 0 || depth > MAX_DEPTH {
            return Err(QueueError::Shape { number, queues, depth });
        }
        let path = format!("/dev/ublkc{number}");
        let os = |call, errno| QueueError::Os { path: path.clone(), call, errno };
        let file = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| os("open", errno))?;
        let page = rustix::param::page_size();
        // "ublk_queue_cmd_buf_size" of the driver: the kernel takes no other length.
        let len = (usize::from(depth) * IO_DESC_BYTES).next_multiple_of(page);
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let descriptors = MmapOptions::new()
            .len(len)
            .map_raw_read_only(&file)
            .map_err(|error| os("mmap", errno(error)))?;
        let data = if device.features.has(Features::USER_COPY) {
            Data::Kernel
        } else {
            let bytes_each = (device.max_io_bytes as usize).next_multiple_of(page);
            let memory = MmapOptions::new()
                .len(bytes_each * usize::from(depth))
                .map_anon()
                .map_err(|error| os("mmap", errno(error)))?
                .into();
            Data::Buffers { memory, bytes_each }
        };
        Ok(Self { file, descriptors, depth, data, under_way: 0 })
    }

    /// Requests that can be under way at once.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        self.depth
    }

    /// Commands that were made and have not ended.
    #[must_use]
    pub const fn under_way(&self) -> u32 {
        self.under_way
    }

    /// A command, to be submitted to the file that [`Queue::as_fd`] is of. It is under way from now on, until
    /// [`Queue::ended`] is told of its completion; the memory that it names lives that long.
    ///
    /// # Panics
    /// If the command's tag is not below the depth.
    #[must_use]
    pub fn begin(&mut self, command: IoCommand) -> Command {
        assert!(command.tag() < self.depth, "a request that the queue does not have");
        self.under_way += 1;
        let address = match &self.data {
            Data::Kernel => 0,
            Data::Buffers { memory, bytes_each } => {
                memory.as_ptr() as u64 + u64::from(command.tag()) * *bytes_each as u64
            }
        };
        let (code, bytes) = command.encode(address);
        // SAFETY: the driver touches the request's buffer only: none of ours with `UBLK_F_USER_COPY`, or else `bytes_each` bytes
        // of `memory`, which no reference is made to, and which `drop` does not unmap while commands are under way.
        unsafe { Command::new(code, bytes) }
    }

    /// A command has ended.
    pub fn ended(&mut self) {
        self.under_way -= 1;
    }

    /// The request with number `tag`, whose fetch has just completed.
    ///
    /// # Errors
    /// See [`RequestError`].
    ///
    /// # Panics
    /// If the tag is not below the depth.
    pub fn request(&self, tag: u16) -> Result<Request, RequestError> {
        assert!(tag < self.depth, "a request that the queue does not have");
        let at = usize::from(tag) * IO_DESC_BYTES;
        // SAFETY: `at..at + 24` lies in the mapping, whose length is at least `depth * 24`; the kernel may write there meanwhile
        // if it breaks its word, which is why it is read through a raw pointer, and once.
        let bytes = unsafe {
            self.descriptors.as_ptr().add(at).cast::<[u8; IO_DESC_BYTES]>().read_volatile()
        };
        Request::decode(&bytes)
    }

    /// Copies what the write with number `tag` brings, from byte `from` of it on.
    ///
    /// # Errors
    /// What the kernel said; the device may be gone.
    ///
    /// # Panics
    /// If a request can't be that long.
    pub fn take(&self, tag: u16, from: usize, into: &mut [u8]) -> Result<(), Errno> {
        match &self.data {
            Data::Kernel => {
                let mut done = 0;
                while done < into.len() {
                    let at = offset_of(tag, from + done);
                    match rustix::io::pread(&self.file, &mut into[done..], at) {
                        Ok(0) => return Err(Errno::IO),
                        Ok(bytes) => done += bytes,
                        Err(Errno::INTR) => {}
                        Err(errno) => return Err(errno),
                    }
                }
            }
            Data::Buffers { memory, bytes_each } => {
                let at = buffer_offset(tag, from, into.len(), *bytes_each);
                // SAFETY: the range lies in the mapping, as `buffer_offset` made sure; the kernel wrote the request's buffer before its
                // fetch completed and does not touch it now.
                unsafe { memory.as_ptr().add(at).copy_to(into.as_mut_ptr(), into.len()) }
            }
        }
        Ok(())
    }

    /// Gives the read with number `tag` its data, from byte `from` of it on.
    ///
    /// # Errors
    /// As [`Queue::take`].
    ///
    /// # Panics
    /// If a request can't be that long.
    pub fn give(&self, tag: u16, from: usize, data: &[u8]) -> Result<(), Errno> {
        match &self.data {
            Data::Kernel => {
                let mut done = 0;
                while done < data.len() {
                    let at = offset_of(tag, from + done);
                    match rustix::io::pwrite(&self.file, &data[done..], at) {
                        Ok(0) => return Err(Errno::IO),
                        Ok(bytes) => done += bytes,
                        Err(Errno::INTR) => {}
                        Err(errno) => return Err(errno),
                    }
                }
            }
            Data::Buffers { memory, bytes_each } => {
                let at = buffer_offset(tag, from, data.len(), *bytes_each);
                // SAFETY: the range lies in the mapping, as `buffer_offset` made sure, and nothing else refers to it: the
                // kernel reads the request's buffer only when its result is committed.
                unsafe { memory.as_mut_ptr().add(at).copy_from(data.as_ptr(), data.len()) }
            }
        }
        Ok(())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.under_way == 0 {
            return;
        }
        // The kernel has the buffers' addresses for as long as there are commands.
        if let Data::Buffers { memory, .. } = std::mem::replace(&mut self.data, Data::Kernel) {
            std::mem::forget(memory);
        }
    }
}

/// Where byte `from` of a request's data lies in the character device.
fn offset_of(tag: u16, from: usize) -> u64 {
    assert!(from < 1 << TAG_SHIFT, "no request is that long");
    IO_BUF_OFFSET + (u64::from(tag) << TAG_SHIFT) + from as u64
}

fn buffer_offset(tag: u16, from: usize, len: usize, bytes_each: usize) -> usize {
    assert!(from <= bytes_each && len <= bytes_each - from, "no request is that long");
    usize::from(tag) * bytes_each + from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_lies_where_the_header_says() {
        assert_eq!(offset_of(0, 0), 0x8000_0000);
        assert_eq!(offset_of(1, 4096), 0x8000_0000 + (1 << 25) + 4096);
        assert_eq!(offset_of(4095, (1 << 25) - 1), 0x8000_0000 + (4096 << 25) - 1);
        assert_eq!(buffer_offset(2, 4096, 4096, 8192), 5 * 4096);
    }

    #[test]
    #[should_panic(expected = "no request is that long")]
    fn nothing_is_copied_from_behind_a_buffer() {
        buffer_offset(0, 4096, 4097, 8192);
    }
}
