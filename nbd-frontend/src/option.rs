//! Decoding of option data. Knows the layouts, not what the options do.
//!
//! Source: NBD proto, "Option types".

use crate::context::Query;
use crate::limits::{MAX_META_QUERIES, MAX_STRING_BYTES};
use crate::proto::{
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_NAME, REP_ERR_INVALID, REP_ERR_TOO_BIG,
};
use crate::wire::Fields;

/// A refusal: the reply type and a sentence for the human.
pub(crate) type Refusal = (u32, &'static str);

const MALFORMED: Refusal = (REP_ERR_INVALID, "the option's data is malformed");

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoQuery<'a> {
    pub(crate) name: &'a str,
    pub(crate) wants_name: bool,
    pub(crate) wants_description: bool,
    pub(crate) wants_block_size: bool,
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MetaQuery<'a> {
    pub(crate) name: &'a str,
    /// Number of queries.
    pub(crate) queries: u32,
    /// The queries, each behind its length.
    texts: &'a [u8],
}

impl<'a> MetaQuery<'a> {
    /// What the queries name.
    pub(crate) fn texts(&self) -> impl Iterator<Item = Query<'a>> {
        let mut fields = Fields(self.texts);
        std::iter::from_fn(move || counted(&mut fields).map(Query::of))
    }
}

/// An export name: UTF-8 without NUL and not too long.
pub(crate) fn name(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err((REP_ERR_TOO_BIG, "the export name is longer than 4096 bytes"));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err((REP_ERR_INVALID, "the export name is not UTF-8 without NUL")),
    }
}

fn counted<'a>(fields: &mut Fields<'a>) -> Option<&'a [u8]> {
    let len = fields.u32()?;
    fields.bytes(usize::try_from(len).ok()?)
}

pub(crate) fn info(data: &[u8]) -> Result<InfoQuery<'_>, Refusal> {
    let mut fields = Fields(data);
    let raw = counted(&mut fields).ok_or(MALFORMED)?;
    let count = fields.u16().ok_or(MALFORMED)?;
    if fields.0.len() != usize::from(count) * 2 {
        return Err(MALFORMED);
    }
    let mut query = InfoQuery {
        name: name(raw)?,
        wants_name: false,
        wants_description: false,
        wants_block_size: false,
    };
    while let Some(kind) = fields.u16() {
        match kind {
            INFO_NAME => query.wants_name = true,
            INFO_DESCRIPTION => query.wants_description = true,
            INFO_BLOCK_SIZE => query.wants_block_size = true,
            // The export itself is always told; what isn't known must be ignored.
            _ => {}
        }
    }
    Ok(query)
}

pub(crate) fn meta(data: &[u8]) -> Result<MetaQuery<'_>, Refusal> {
    let mut fields = Fields(data);
    let raw = counted(&mut fields).ok_or(MALFORMED)?;
    let queries = fields.u32().ok_or(MALFORMED)?;
    if queries > MAX_META_QUERIES {
        return Err((REP_ERR_TOO_BIG, "too many metadata context queries"));
    }
    let query = MetaQuery { name: name(raw)?, queries, texts: fields.0 };
    for _ in 0..queries {
        counted(&mut fields).ok_or(MALFORMED)?;
    }
    if fields.0.is_empty() { Ok(query) } else { Err(MALFORMED) }
}
