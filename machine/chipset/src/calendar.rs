//! The proleptic Gregorian calendar, between seconds since 1970 and the fields an RTC shows.

pub(crate) const SECONDS_PER_DAY: i64 = 86_400;

/// A date and time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DateTime {
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in_month(year: i64, month: u8) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 0001-01-01 to the first day of `year`.
const fn days_before_year(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400)
}

const DAYS_TO_1970: i64 = days_before_year(1970);

impl DateTime {
    /// The date of `seconds` since 1970.
    pub(crate) fn from_unix(seconds: i64) -> Self {
        let mut days = seconds.div_euclid(SECONDS_PER_DAY) + DAYS_TO_1970;
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        // 146,097 days are 400 years; the estimate is off by one year at most.
        let mut year = (days * 400).div_euclid(146_097) + 1;
        if days_before_year(year) > days {
            year -= 1;
        } else if days_before_year(year + 1) <= days {
            year += 1;
        }
        days -= days_before_year(year);
        let mut month = 1;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: days as u8 + 1,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since 1970. A field beyond its range carries over, as no RTC field is checked.
    pub(crate) fn to_unix(self) -> i64 {
        let months = i64::from(self.month) - 1;
        let (year, month) = (self.year + months.div_euclid(12), months.rem_euclid(12) as u8 + 1);
        let before_month: i64 = (1..month).map(|month| days_in_month(year, month)).sum();
        let days = days_before_year(year) - DAYS_TO_1970 + before_month + i64::from(self.day) - 1;
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * SECONDS_PER_DAY + of_day
    }

    /// Day of the week: 1 is Sunday.
    pub(crate) fn weekday(self) -> u8 {
        let days = Self { hour: 0, minute: 0, second: 0, ..self }.to_unix() / SECONDS_PER_DAY;
        // 1970-01-01 was a Thursday.
        (days + 4).rem_euclid(7) as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let date = |year, month, day| DateTime { year, month, day, hour: 0, minute: 0, second: 0 };
        // From `date -u -d <date> +%s` and `+%w`.
        for (date, unix, weekday) in [
            (date(1970, 1, 1), 0, 5),
            (date(2000, 2, 29), 951_782_400, 3),
            (date(2024, 2, 29), 1_709_164_800, 5),
            (date(2038, 1, 19), 2_147_472_000, 3),
            (date(2100, 3, 1), 4_107_542_400, 2),
        ] {
            assert_eq!(DateTime::from_unix(unix), date);
            assert_eq!(date.to_unix(), unix);
            assert_eq!(date.weekday(), weekday);
        }
    }

    proptest! {
        #[test]
        fn round_trip(seconds in -62_135_596_800i64..253_402_300_800) {
            prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }
    }
}
