//! The handshake: fixed newstyle negotiation up to the choice of an export.
//!
//! Invariants:
//! 1. An option is answered only when all its data has arrived or been skipped, with exactly one
//!    final reply (`NBD_REP_ACK` or an error), except `NBD_OPT_EXPORT_NAME`.
//! 2. Nothing is appended to the reply buffer unless the whole option's reply fits.
//!
//! Source: NBD proto, "Fixed newstyle negotiation", "Option types", "Option reply types".

use crate::context::{Contexts, Difference, Query, prefix};
use crate::export::{Export, Exports, transmission_flags};
use crate::limits::{
    HANDSHAKE_REPLY_BYTES, MAX_DESCRIPTION_BYTES, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_ORIGIN_BYTES,
    MAX_PAYLOAD_BYTES, MAX_SKIPPED_OPTION_BYTES, MAX_STRING_BYTES, MIN_BLOCK_BYTES,
};
use crate::option::{self, InfoQuery, Refusal};
use crate::proto::*;
use crate::reply::Style;
use crate::session::{CloseReason, Opened, Received, Step};
use crate::wire::{Fields, Out};
use flagstone_block::BLOCK_SIZE;

const OPTION_HEADER_BYTES: usize = 16;

/// The server's first bytes. NBD proto, "Newstyle negotiation".
pub(crate) const GREETING: [u8; 18] = {
    let mut bytes = [0; 18];
    let (passwd, magic) = (INIT_PASSWD.to_be_bytes(), IHAVEOPT.to_be_bytes());
    let flags = (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes();
    let mut i = 0;
    while i < 8 {
        bytes[i] = passwd[i];
        bytes[8 + i] = magic[i];
        i += 1;
    }
    bytes[16] = flags[0];
    bytes[17] = flags[1];
    bytes
};

#[derive(Debug)]
enum Phase {
    /// The client's flags come next.
    Flags,
    /// An option comes next.
    Options,
    /// Data of an option that is already decided is being dropped.
    Skipping { option: u32, left: u32, refusal: Refusal },
    /// The exports behind this one, or all, are still to be told.
    Listing { after: Option<String> },
    /// The contexts for the snapshots behind this one, or all, are still to be told.
    ListingContexts { export: u64, after: Option<String>, all: AllDifferences },
    /// Nothing more is accepted.
    Closed(CloseReason),
}

/// Which contexts that tell differences are to be listed.
#[derive(Clone, Copy, Debug, Default)]
struct AllDifferences {
    flagstone: bool,
    qemu: bool,
}

impl AllDifferences {
    fn has(self, zeroes: bool) -> bool {
        if zeroes { self.flagstone } else { self.qemu }
    }
}

#[derive(Debug)]
pub(crate) struct Handshake {
    phase: Phase,
    fixed: bool,
    no_zeroes: bool,
    style: Style,
    options: u32,
    /// The contexts that were selected, and for which export.
    contexts: Option<(u64, Contexts)>,
    pub(crate) shutting_down: bool,
}

impl Handshake {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Flags,
            fixed: false,
            no_zeroes: false,
            style: Style::Simple,
            options: 0,
            contexts: None,
            shutting_down: false,
        }
    }

    pub(crate) fn receive(
        &mut self,
        input: &[u8],
        exports: &dyn Exports,
        out: &mut Out<'_>,
    ) -> Received {
        if out.room() < HANDSHAKE_REPLY_BYTES {
            return Received { consumed: 0, step: Step::NeedRoom };
        }
        match self.phase {
            Phase::Flags => self.client_flags(input),
            Phase::Options => self.option(input, exports, out),
            Phase::Skipping { option, left, refusal } => {
                let now = u32::try_from(input.len()).unwrap_or(u32::MAX).min(left);
                let consumed = now as usize;
                if now < left {
                    self.phase = Phase::Skipping { option, left: left - now, refusal };
                    return Received { consumed, step: Step::NeedMore };
                }
                self.phase = Phase::Options;
                Received { consumed, step: self.finish(option, refusal, out) }
            }
            Phase::Listing { ref mut after } => {
                let after = after.take();
                Received { consumed: 0, step: self.list(after, exports, out) }
            }
            Phase::ListingContexts { export, ref mut after, all } => {
                let after = after.take();
                Received { consumed: 0, step: self.list_contexts(export, after, all, exports, out) }
            }
            Phase::Closed(reason) => Received { consumed: 0, step: Step::Close(reason) },
        }
    }

    fn close(&mut self, consumed: usize, reason: CloseReason) -> Received {
        self.phase = Phase::Closed(reason);
        Received { consumed, step: Step::Close(reason) }
    }

    fn client_flags(&mut self, input: &[u8]) -> Received {
        let Some(flags) = Fields(input).u32() else {
            return Received { consumed: 0, step: Step::NeedMore };
        };
        // "the server MUST drop the TCP connection if the client sets an unknown flag".
        if flags & !(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES) != 0 {
            return self.close(4, CloseReason::UnknownClientFlags);
        }
        self.fixed = flags & FLAG_C_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & FLAG_C_NO_ZEROES != 0;
        self.phase = Phase::Options;
        Received { consumed: 4, step: Step::Again }
    }

    fn option(&mut self, input: &[u8], exports: &dyn Exports, out: &mut Out<'_>) -> Received {
        const NEED_MORE: Received = Received { consumed: 0, step: Step::NeedMore };
        let mut fields = Fields(input);
        let (Some(magic), Some(option), Some(len)) = (fields.u64(), fields.u32(), fields.u32())
        else {
            return NEED_MORE;
        };
        if magic != IHAVEOPT {
            return self.close(OPTION_HEADER_BYTES, CloseReason::BadOptionMagic);
        }
        if self.options == MAX_OPTIONS {
            return self.close(OPTION_HEADER_BYTES, CloseReason::TooManyOptions);
        }
        // A client that didn't say it knows fixed newstyle doesn't expect replies.
        if !self.fixed && option != OPT_EXPORT_NAME {
            return self.close(OPTION_HEADER_BYTES, CloseReason::OptionBeforeFixedNewstyle);
        }
        if len > MAX_SKIPPED_OPTION_BYTES {
            return self.close(OPTION_HEADER_BYTES, CloseReason::OptionTooLong);
        }
        if let Some(refusal) = self.refusal_by_header(option, len) {
            if option == OPT_EXPORT_NAME {
                return self.close(OPTION_HEADER_BYTES, CloseReason::NoSuchExport);
            }
            self.options += 1;
            self.phase = Phase::Skipping { option, left: len, refusal };
            return Received { consumed: OPTION_HEADER_BYTES, step: Step::Again };
        }
        let Some(data) = fields.bytes(len as usize) else { return NEED_MORE };
        self.options += 1;
        let consumed = OPTION_HEADER_BYTES + data.len();
        let step = match self.perform(option, data, exports, out) {
            Ok(step) => step,
            Err(refusal) if option == OPT_EXPORT_NAME => {
                debug_assert!(refusal.0 & REP_FLAG_ERROR != 0);
                return self.close(consumed, CloseReason::NoSuchExport);
            }
            Err(refusal) => self.finish(option, refusal, out),
        };
        Received { consumed, step }
    }

    /// What is decided by an option's header alone; its data is then dropped unread.
    fn refusal_by_header(&self, option: u32, len: u32) -> Option<Refusal> {
        let known = matches!(
            option,
            OPT_EXPORT_NAME
                | OPT_ABORT
                | OPT_LIST
                | OPT_INFO
                | OPT_GO
                | OPT_STRUCTURED_REPLY
                | OPT_LIST_META_CONTEXT
                | OPT_SET_META_CONTEXT
                | OPT_EXTENDED_HEADERS
        );
        match option {
            // "a server SHOULD ignore any data sent by the client".
            OPT_ABORT => Some((REP_ACK, "")),
            _ if self.shutting_down => Some((REP_ERR_SHUTDOWN, "the server is shutting down")),
            OPT_STARTTLS => Some((REP_ERR_UNSUP, "this server doesn't offer TLS")),
            _ if !known => Some((REP_ERR_UNSUP, "unknown option")),
            OPT_LIST | OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS if len != 0 => {
                Some((REP_ERR_INVALID, "this option takes no data"))
            }
            _ if len as usize > MAX_OPTION_BYTES => {
                Some((REP_ERR_TOO_BIG, "the option's data is too long"))
            }
            _ => None,
        }
    }

    /// Sends the final reply of an option that selected nothing.
    fn finish(&mut self, option: u32, (kind, text): Refusal, out: &mut Out<'_>) -> Step {
        // "replaces all previously-set metadata contexts (including when this command fails)".
        if option == OPT_SET_META_CONTEXT {
            self.contexts = None;
        }
        put_reply(out, option, kind, &[text.as_bytes()]);
        if option == OPT_ABORT {
            self.phase = Phase::Closed(CloseReason::Aborted);
            return Step::Close(CloseReason::Aborted);
        }
        Step::Again
    }

    fn perform(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Out<'_>,
    ) -> Result<Step, Refusal> {
        match option {
            OPT_EXPORT_NAME => self.export_name(data, exports, out),
            OPT_LIST => Ok(self.list(None, exports, out)),
            OPT_INFO | OPT_GO => self.info_or_go(option, data, exports, out),
            OPT_STRUCTURED_REPLY => {
                if self.style == Style::Extended {
                    return Err((REP_ERR_EXT_HEADER_REQD, "extended headers are in use"));
                }
                self.style = Style::Structured;
                put_reply(out, option, REP_ACK, &[]);
                Ok(Step::Again)
            }
            OPT_EXTENDED_HEADERS => {
                self.style = Style::Extended;
                put_reply(out, option, REP_ACK, &[]);
                Ok(Step::Again)
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.meta_context(option, data, exports, out)
            }
            _ => Err((REP_ERR_UNSUP, "unknown option")),
        }
    }

    fn opened(&self, export: &Export<'_>) -> Opened {
        Opened {
            handle: export.handle,
            size: export.size,
            read_only: export.read_only,
            style: self.style,
            contexts: self.contexts.filter(|(of, _)| *of == export.handle).unwrap_or_default().1,
        }
    }

    fn export_name(
        &mut self,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Out<'_>,
    ) -> Result<Step, Refusal> {
        let export = exports.resolve(option::name(data)?).ok_or(UNKNOWN_EXPORT)?;
        // With extended headers in use only NBD_OPT_GO may end the handshake.
        if self.style == Style::Extended {
            return Err((REP_ERR_INVALID, "extended headers need NBD_OPT_GO"));
        }
        out.u64(export.size);
        out.u16(self.transmission_flags(&export));
        if !self.no_zeroes {
            out.put(&[0; 124]);
        }
        Ok(Step::Opened(self.opened(&export)))
    }

    fn list(&mut self, after: Option<String>, exports: &dyn Exports, out: &mut Out<'_>) -> Step {
        let mut last = after.as_deref();
        while let Some(export) = exports.after(last) {
            if out.room() < HANDSHAKE_REPLY_BYTES {
                self.phase = Phase::Listing { after: last.map(str::to_owned) };
                return Step::NeedRoom;
            }
            last = Some(export.name);
            if export.name.len() > MAX_STRING_BYTES {
                continue;
            }
            put_reply(
                out,
                OPT_LIST,
                REP_SERVER,
                &[
                    &u32::try_from(export.name.len()).unwrap_or(0).to_be_bytes(),
                    export.name.as_bytes(),
                    description(&export).as_bytes(),
                ],
            );
        }
        if out.room() < HANDSHAKE_REPLY_BYTES {
            self.phase = Phase::Listing { after: last.map(str::to_owned) };
            return Step::NeedRoom;
        }
        self.phase = Phase::Options;
        put_reply(out, OPT_LIST, REP_ACK, &[]);
        Step::Again
    }

    fn info_or_go(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Out<'_>,
    ) -> Result<Step, Refusal> {
        let query = option::info(data)?;
        let export = find(exports, query.name)?;
        self.tell(option, &query, &export, out);
        put_reply(out, option, REP_ACK, &[]);
        Ok(if option == OPT_GO { Step::Opened(self.opened(&export)) } else { Step::Again })
    }

    fn tell(&self, option: u32, query: &InfoQuery<'_>, export: &Export<'_>, out: &mut Out<'_>) {
        let kind = |info: u16| info.to_be_bytes();
        let flags = self.transmission_flags(export).to_be_bytes();
        let size = export.size.to_be_bytes();
        put_reply(out, option, REP_INFO, &[&kind(INFO_EXPORT), &size, &flags]);
        if query.wants_name {
            put_reply(out, option, REP_INFO, &[&kind(INFO_NAME), export.name.as_bytes()]);
        }
        let text = description(export);
        if query.wants_description && !text.is_empty() {
            put_reply(out, option, REP_INFO, &[&kind(INFO_DESCRIPTION), text.as_bytes()]);
        }
        if query.wants_block_size {
            let sizes = [
                MIN_BLOCK_BYTES.to_be_bytes(),
                (BLOCK_SIZE as u32).to_be_bytes(),
                MAX_PAYLOAD_BYTES.to_be_bytes(),
            ];
            put_reply(out, option, REP_INFO, &[&kind(INFO_BLOCK_SIZE), sizes.as_flattened()]);
        }
    }

    fn meta_context(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Out<'_>,
    ) -> Result<Step, Refusal> {
        let select = option == OPT_SET_META_CONTEXT;
        if self.style == Style::Simple {
            return Err((REP_ERR_INVALID, "negotiate structured replies first"));
        }
        let query = option::meta(data)?;
        let export = find(exports, query.name)?;
        let (mut contexts, mut all) = (Contexts::default(), AllDifferences::default());
        if !select {
            // Wildcards, and nothing at all, are for lists.
            let everything = query.queries == 0;
            all = AllDifferences { flagstone: everything, qemu: everything };
            contexts.allocation = everything;
            for text in query.texts() {
                match text {
                    Query::Base => contexts.allocation = true,
                    Query::All { zeroes: true } => all.flagstone = true,
                    Query::All { zeroes: false } => all.qemu = true,
                    _ => {}
                }
            }
        }
        let mut room = contexts;
        for text in query.texts() {
            if let Query::Difference { origin: name, zeroes } = text
                && !all.has(zeroes)
                && let Some(origin) = exports.origin(export.handle, name)
                && !room.takes(Difference { origin, zeroes })
            {
                return Err((REP_ERR_TOO_BIG, "so many contexts are too many at once"));
            }
        }
        contexts.allocation |= query.texts().any(|text| text == Query::Allocation);
        if contexts.allocation {
            put_context(out, option, BASE_ALLOCATION_ID, BASE_ALLOCATION, "");
        }
        for text in query.texts() {
            if let Query::Difference { origin: name, zeroes } = text
                && !all.has(zeroes)
                && let Some(origin) = exports.origin(export.handle, name)
                && let Some(id) = contexts.select(Difference { origin, zeroes })
            {
                put_context(out, option, id, prefix(zeroes), name);
            }
        }
        if select {
            self.contexts = (!contexts.is_empty()).then_some((export.handle, contexts));
        } else if all.flagstone || all.qemu {
            return Ok(self.list_contexts(export.handle, None, all, exports, out));
        }
        put_reply(out, option, REP_ACK, &[]);
        Ok(Step::Again)
    }

    fn list_contexts(
        &mut self,
        export: u64,
        after: Option<String>,
        all: AllDifferences,
        exports: &dyn Exports,
        out: &mut Out<'_>,
    ) -> Step {
        const LONGEST: usize = 20 + 4 + 32 + MAX_ORIGIN_BYTES;
        let option = OPT_LIST_META_CONTEXT;
        let mut last = after.as_deref();
        while let Some(name) = exports.origin_after(export, last) {
            if out.room() < 3 * LONGEST {
                self.phase = Phase::ListingContexts { export, after: last.map(str::to_owned), all };
                return Step::NeedRoom;
            }
            last = Some(name);
            for zeroes in [true, false] {
                if all.has(zeroes) && name.len() <= MAX_ORIGIN_BYTES {
                    put_context(out, option, 0, prefix(zeroes), name);
                }
            }
        }
        self.phase = Phase::Options;
        put_reply(out, option, REP_ACK, &[]);
        Step::Again
    }

    fn transmission_flags(&self, export: &Export<'_>) -> u16 {
        transmission_flags(export.read_only, self.style)
    }
}

/// Tells of a context; in a list the identifier is reserved.
fn put_context(out: &mut Out<'_>, option: u32, id: u32, prefix: &str, name: &str) {
    let id = if option == OPT_SET_META_CONTEXT { id } else { 0 };
    let parts = [&id.to_be_bytes()[..], prefix.as_bytes(), name.as_bytes()];
    put_reply(out, option, REP_META_CONTEXT, &parts);
}

const UNKNOWN_EXPORT: Refusal = (REP_ERR_UNKNOWN, "no such export");

fn find<'e>(exports: &'e dyn Exports, name: &str) -> Result<Export<'e>, Refusal> {
    exports
        .resolve(name)
        .filter(|export| export.name.len() <= MAX_STRING_BYTES)
        .ok_or(UNKNOWN_EXPORT)
}

/// An export's description, cut at a character so that a reply's length is bounded.
fn description<'a>(export: &Export<'a>) -> &'a str {
    let end = export.description.floor_char_boundary(MAX_DESCRIPTION_BYTES);
    &export.description[..end]
}

/// Appends one option reply. NBD proto, "Fixed newstyle negotiation".
fn put_reply(out: &mut Out<'_>, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.u64(REPLY_MAGIC);
    out.u32(option);
    out.u32(kind);
    out.u32(u32::try_from(len).expect("the reply fits the buffer, so its length fits 32 bits"));
    for part in parts {
        out.put(part);
    }
}
