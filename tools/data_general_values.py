"""Slot values and common sentences of the general conversations; a star marks a held-out template."""

from __future__ import annotations


def _list(text: str) -> tuple[str, ...]:
    """Split a line of values."""
    return tuple(text.split("; "))


CITIES = _list(
    "San Jose; Oakland; Fresno; Berkeley; Sacramento; San Diego; Palo Alto; Napa; Portland; Seattle; Phoenix; Denver; "
    "Chicago; Atlanta; New York; Philadelphia; Toronto; Vancouver; London; Paris"
)
DATES = _list(
    "today; tomorrow; next Monday; next Friday; this Saturday; March 3rd; March 8th; March 12th; March 5th; "
    "March 9th; next Wednesday; this Thursday; March 1st; March 14th"
)
TIMES = _list(
    "8 am; 9:30 am; 10 am; 11:15 am; 11:30 am; 12 pm; 1:30 pm; 2 pm; 3:45 pm; 4:30 pm; 5 pm; 6 pm; 6:30 pm; 7 pm; "
    "7:45 pm; 8:30 pm"
)
VALUES: dict[str, tuple[str, ...]] = {
    "city": CITIES,
    "to": CITIES[:10],
    "from": CITIES[10:],
    "date": DATES,
    "back": _list("March 10th; March 13th; next Sunday; March 11th; next Thursday"),
    "time": TIMES,
    "other_time": _list("9 am; 10:30 am; 1 pm; 3 pm; 4:15 pm; 5:30 pm; 7:15 pm"),
    "people": _list("two people; three people; four people; five people; six people"),
    "seats": _list("two; three; four"),
    "cuisine": _list("Italian; Mexican; Indian; Chinese; Thai; Japanese; Greek; French; Korean; Vietnamese"),
    "place": _list("Bella Vista; Golden Lotus; Casa Verde; The Blue Fork; Harvest Table; Sakura House; River Grill"),
    "hotel": _list("Hotel Aurora; Parkview Inn; The Grand Willow; Seaside Suites; Hotel Meridian; Maple Lodge"),
    "airline": _list("Delta; United; American; Southwest; Alaska"),
    "price": _list("$48; $65; $72; $89; $110; $124; $156; $183; $210; $245"),
    "ticket": _list("$9; $11; $12; $14; $16"),
    "rent": _list("$1,450; $1,800; $2,100; $2,350; $2,700; $3,050"),
    "amount": _list("$40; $75; $120; $250; $310; $480; $600"),
    "car": _list("compact; standard; full-size; hatchback"),
    "doctor": _list("dentist; dermatologist; general doctor; family doctor; gynecologist; physical therapist"),
    "doctor_name": _list("Dr. Alma Reyes; Dr. John Becker; Dr. Priya Nair; Dr. Susan Cole; Dr. Leo Grant"),
    "salon": _list("Silver Scissors; Studio Nine; Hair by Nora; The Parlor; Cut Above"),
    "beds": _list("two; three; four"),
    "building": _list("Oakwood Terrace; Lakeside Homes; Willow Court; The Madison; Cedar Park"),
    "event": _list("a baseball game; a jazz concert; a rock concert; a basketball game; a musical"),
    "show": _list("Evening Lights; The Long Road; City Stars; Northern Sound; Silver River"),
    "movie": _list("The Last Harbor; Midnight Garden; Paper Boats; A Quiet Storm; Second Summer"),
    "genre": _list("comedy; drama; action; mystery; romantic; horror"),
    "song": _list("Slow River; Open Window; Red Balloon; Falling Leaves; Northern Star"),
    "artist": _list("Mara Lane; The Lanterns; Otis Gray; Velvet Hour; Ivy Carter"),
    "music": _list("pop; rock; country; electronic; reggae; jazz"),
    "device": _list("kitchen speaker; TV; bedroom speaker; patio speaker"),
    "degrees": _list("54; 61; 66; 70; 74; 79; 83; 91"),
    "rain": _list("5; 12; 20; 35; 48; 60; 75"),
    "wind": _list("3; 6; 9; 12; 15"),
    "account": _list("checking; savings"),
    "person": _list("Anna; David; Maria; Jason; Emily; Victor; Sara"),
    "alarm": _list("Morning run; Wake up; Take medicine; Pick up kids; Team call"),
    "appointment": _list("Dinner with Anna; Dentist visit; Team lunch; Yoga class; Car service"),
    "count": _list("2; 3; 4; 5; 7; 8; 10"),
    "phone": _list("408-555-0134; 510-555-0178; 415-555-0102; 916-555-0166; 650-555-0119"),
    "street": _list("245 Grant Avenue; 18 Castro Street; 702 Mission Boulevard; 1190 Bay Road; 56 Willow Lane"),
    "rating": _list("3.8; 4.0; 4.2; 4.5; 4.7"),
}

COMMON = """
accept: Yes, that sounds good.
accept: Yes, please.
accept: That works for me.
accept: Yes, go ahead.
accept: Sounds great, please do that.
accept: Sure, I like that.
accept: Yes, that is correct.
accept: Perfect, that is what I want.
*accept: Okay, let's do it.
*accept: Yeah, that suits me well.
*accept: Great, I'll go with that one.
*accept: Yes, I am happy with it.
more: Can I help you with anything else?
more: Is there anything else you need?
more: Do you need anything else?
more: What else can I do for you?
*more: Is there something else I can do?
*more: Would you like help with anything more?
thanks: No, that is all. Thank you.
thanks: That's it, thanks for your help.
thanks: No, thank you very much.
thanks: Nothing else, thanks.
thanks: No thanks, I am done for now.
*thanks: That will be everything, thanks a lot.
*thanks: I don't need anything more, thank you so much.
*thanks: No, you have been very helpful.
bye: You're welcome. Have a great day.
bye: Have a nice day.
bye: Enjoy your day, goodbye.
bye: Thank you for contacting us. Bye.
bye: Glad I could help. Take care.
*bye: It was my pleasure. Have a wonderful day.
*bye: Have a good one.
*bye: You are most welcome, see you next time.
"""
