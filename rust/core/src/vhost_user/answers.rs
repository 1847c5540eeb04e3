//! Checks of a backend's answers before they are forwarded to QEMU.
//!
//! QEMU takes any message as the answer to its next request. If it does not accept the answer it
//! disconnects and connects again, forever while it creates a netdev. During that time, no such message
//! is forwarded; at other times, only wrong answers and refusals are not.

use super::demands::few_pairs;
use super::message::{Message, REPLY, VERSION, request};

/// QEMU keeps the number of queue pairs in a C `int`.
const MOST_PAIRS: u64 = i32::MAX as u64;

/// The state that determines which answers are acceptable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// The required number of queue pairs.
    pub pairs: u16,
    /// Whether QEMU is creating a netdev.
    pub strict: bool,
    /// Whether QEMU's last request is unknown and may have an answer.
    pub unsure: bool,
}

impl Known {
    /// Records a forwarded request.
    pub(super) fn request(&mut self, message: &Message) {
        self.unsure = !message.wants_reply() && !message.has_no_answer();
    }

    /// Why an answer must not be forwarded. `question` is QEMU's open request.
    pub(super) fn objection(&self, question: Option<&Message>, answer: &Message) -> Option<String> {
        if !self.strict && !answer.is_reply() {
            return None;
        }
        let said = request::name(answer.request);
        let Some(question) = question else {
            let wrong = self.strict && !self.unsure;
            return wrong.then(|| format!("it sent {said} without a request"));
        };
        let name = request::name(question.request);
        if answer.request != question.request {
            return Some(format!("it answered {name} with {said}"));
        }
        if self.strict && answer.flags != VERSION | REPLY {
            return Some(format!("it answered {name} with the flags {:#x}", answer.flags));
        }
        if self.strict && !question.is_structure() && answer.payload.len() != size_of::<u64>() {
            return Some(format!("it answered {name} with {} bytes", answer.payload.len()));
        }
        let number = answer.number()?;
        match question.request {
            request::GET_QUEUE_NUM if number < self.pairs.into() => {
                Some(few_pairs(number, self.pairs))
            }
            request::GET_QUEUE_NUM if self.strict && number > MOST_PAIRS => {
                Some(format!("it reports {number} queue pairs"))
            }
            request::GET_MAX_MEM_SLOTS if self.strict && number == 0 => {
                Some("it accepts no memory: GET_MAX_MEM_SLOTS is 0".into())
            }
            _ if number != 0 && !question.is_question() => Some(format!("it refused {name}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(request: u32, flags: u32, number: u64) -> Message {
        let mut message = Message::ask(request);
        message.flags = flags;
        message.set_number(number);
        message
    }

    fn objection(known: Known, asked: u32, answer: &Message) -> String {
        known.objection(Some(&Message::ask(asked)), answer).unwrap_or_default()
    }

    #[test]
    fn an_answer_must_have_the_right_form() {
        use request::GET_FEATURES;
        let known = Known { pairs: 1, strict: true, ..Known::default() };
        assert_eq!(objection(known, GET_FEATURES, &said(GET_FEATURES, 5, 7)), "");
        assert!(objection(known, GET_FEATURES, &said(2, 5, 7)).contains("with SET_FEATURES"));
        assert!(objection(known, GET_FEATURES, &said(GET_FEATURES, 1, 7)).contains("flags 0x1"));
        let mut short = said(GET_FEATURES, 5, 7);
        short.payload.truncate(4);
        assert!(objection(known, GET_FEATURES, &short).contains("with 4 bytes"));
    }

    #[test]
    fn a_message_without_a_request_is_rejected() {
        let mut known = Known { strict: true, ..Known::default() };
        let answer = said(request::SET_PROTOCOL_FEATURES, 5, 0);
        assert!(known.objection(None, &answer).is_some(), "before any request");
        known.request(&Message::ask(request::SET_PROTOCOL_FEATURES));
        let words = known.objection(None, &answer).unwrap_or_default();
        assert!(words.contains("sent SET_PROTOCOL_FEATURES without a request"), "{words}");
        // An unknown request may have an answer.
        known.request(&Message::ask(999));
        assert_eq!(known.objection(None, &answer), None);
    }

    #[test]
    fn answers_that_qemu_would_refuse_forever_are_rejected() {
        let known = Known { pairs: 2, strict: true, ..Known::default() };
        for (asked, number, words) in [
            (request::GET_QUEUE_NUM, 1, "1 queue pair, but 2 are required"),
            (request::GET_QUEUE_NUM, u64::MAX, "18446744073709551615 queue pairs"),
            (request::GET_MAX_MEM_SLOTS, 0, "accepts no memory"),
            (request::SET_VRING_ENABLE, 1, "it refused SET_VRING_ENABLE"),
        ] {
            let found = objection(known, asked, &said(asked, 5, number));
            assert!(found.contains(words), "{found}");
        }
    }
}
