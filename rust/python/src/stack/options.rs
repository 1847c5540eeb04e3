//! Socket options by name.

use std::time::Duration;
use virtnic::stack::{Congestion, Options};

/// The value of an option.
pub(super) fn get(options: &Options, name: &str) -> Option<f64> {
    let flag = |value: bool| f64::from(u8::from(value));
    Some(match name {
        "no_delay" => flag(options.no_delay),
        "keep_alive" => flag(options.keep_alive),
        "keep_idle" => options.keep_idle.as_secs_f64(),
        "keep_interval" => options.keep_interval.as_secs_f64(),
        "keep_count" => options.keep_count.into(),
        "user_timeout" => options.user_timeout.as_secs_f64(),
        "broadcast" => flag(options.broadcast),
        "reuse" => flag(options.reuse),
        "receive_buffer" => options.receive_buffer as f64,
        "send_buffer" => options.send_buffer as f64,
        "hops" => options.hops.into(),
        "multicast_hops" => options.multicast_hops.into(),
        "reset_on_close" => flag(options.reset_on_close),
        "congestion" => match options.congestion {
            Congestion::Cubic => 0.0,
            Congestion::Reno => 1.0,
            Congestion::None => 2.0,
        },
        _ => return None,
    })
}

/// Sets an option.
pub(super) fn set(options: &mut Options, name: &str, value: f64) {
    let span = Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(1));
    match name {
        "no_delay" => options.no_delay = value != 0.0,
        "keep_alive" => options.keep_alive = value != 0.0,
        "keep_idle" => options.keep_idle = span.max(Duration::from_secs(1)),
        "keep_interval" => options.keep_interval = span.max(Duration::from_secs(1)),
        "keep_count" => options.keep_count = (value as u32).clamp(1, 127),
        "user_timeout" if value > 0.0 => options.user_timeout = span,
        "user_timeout" => options.user_timeout = Options::default().user_timeout,
        "broadcast" => options.broadcast = value != 0.0,
        "reuse" => options.reuse = value != 0.0,
        "receive_buffer" => options.receive_buffer = value as usize,
        "send_buffer" => options.send_buffer = value as usize,
        "hops" => options.hops = value as u8,
        "multicast_hops" => options.multicast_hops = value as u8,
        "reset_on_close" => options.reset_on_close = value != 0.0,
        "congestion" => {
            options.congestion = match value as u8 {
                0 => Congestion::Cubic,
                1 => Congestion::Reno,
                _ => Congestion::None,
            }
        }
        _ => {}
    }
}
