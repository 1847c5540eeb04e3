//! What a backend may say: the answer to the question that is open, as QEMU takes it.
//!
//! QEMU takes whatever comes for the answer to what it asks next. Where that is not what it wants
//! to hear it hangs up and connects again, and while it makes a netdev it does nothing else, for
//! ever. So it hears nothing then that would lead to that; at other times only a wrong answer and
//! a refusal are kept from it.

use super::demands::few_pairs;
use super::message::{Message, REPLY, VERSION, request};

/// QEMU keeps the number of queue pairs in a C `int`.
const MOST_PAIRS: u64 = i32::MAX as u64;

/// What is known of a backend that is asked something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// The queue pairs that there must be.
    pub pairs: u16,
    /// Whether QEMU makes a netdev meanwhile.
    pub strict: bool,
    /// Whether QEMU sent something last that may have an answer we know nothing of.
    pub unsure: bool,
}

impl Known {
    /// A request was passed on.
    pub(super) fn request(&mut self, message: &Message) {
        self.unsure = !message.wants_reply() && !message.has_no_answer();
    }

    /// Why QEMU must not hear this. `question` is what it waits for an answer to.
    pub(super) fn objection(&self, question: Option<&Message>, answer: &Message) -> Option<String> {
        if !self.strict && !answer.is_reply() {
            return None;
        }
        let said = request::name(answer.request);
        let Some(question) = question else {
            let wrong = self.strict && !self.unsure;
            return wrong.then(|| format!("it sent {said}, which nobody had asked for"));
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
                Some(format!("it says that it has {number} queue pairs"))
            }
            request::GET_MAX_MEM_SLOTS if self.strict && number == 0 => {
                Some("it has no place for our memory: GET_MAX_MEM_SLOTS is 0".into())
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
    fn an_answer_has_the_form_that_qemu_takes() {
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
    fn what_nobody_asked_for_is_not_passed_on() {
        let mut known = Known { strict: true, ..Known::default() };
        let answer = said(request::SET_PROTOCOL_FEATURES, 5, 0);
        assert!(known.objection(None, &answer).is_some(), "before there was a question");
        known.request(&Message::ask(request::SET_PROTOCOL_FEATURES));
        let words = known.objection(None, &answer).unwrap_or_default();
        assert!(words.contains("sent SET_PROTOCOL_FEATURES, which nobody"), "{words}");
        // Of a request that we do not know nobody can tell.
        known.request(&Message::ask(999));
        assert_eq!(known.objection(None, &answer), None);
    }

    #[test]
    fn what_qemu_would_refuse_again_and_again_is_refused_here() {
        let known = Known { pairs: 2, strict: true, ..Known::default() };
        for (asked, number, words) in [
            (request::GET_QUEUE_NUM, 1, "1 queue pair, and 2 are asked for"),
            (request::GET_QUEUE_NUM, u64::MAX, "18446744073709551615 queue pairs"),
            (request::GET_MAX_MEM_SLOTS, 0, "no place for our memory"),
            (request::SET_VRING_ENABLE, 1, "it refused SET_VRING_ENABLE"),
        ] {
            let found = objection(known, asked, &said(asked, 5, number));
            assert!(found.contains(words), "{found}");
        }
    }
}
