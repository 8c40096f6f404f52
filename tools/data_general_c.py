"""Sentence templates of the last scenes: free time, weather, money and reminders."""

SCENES_C = """
# event
open: I want to see {event} in {city}.
open: Can you find something fun to do in {city}?
open: Are there any events {date}?
open: Please get me tickets for {event}.
*open: What is going on in {city} {date}?
*open: I am bored, suggest an evening out.
*open: My friends and I want a night out in {city}.
ask.event: What kind of event do you like?
ask.event: Do you prefer music or sports?
*ask.event: Which sort of evening would you enjoy?
say.event: I'd like to see {event}.
say.event: Find me {event}.
*say.event: {event} would be fun for us.
ask.city: Where should I look for events?
ask.city: In which city is the event?
*ask.city: What town are you spending the evening in?
say.city: Search in {city}, please.
say.city: Any event in {city}.
*say.city: We will be around {city}.
ask.seats: How many tickets should I get?
ask.seats: How many people are going?
*ask.seats: What number of tickets is right?
say.seats: Get {seats}, please.
say.seats: We need {seats} tickets.
*say.seats: I would take {seats}.
offer: {show} is playing in {city} {date} at {time}.
offer: I found {count} events. One of them is {show}.
offer: There is {show} at {time}. Shall I get tickets?
*offer: {show} might be for you, it starts at {time}.
*offer: People say good things about {show} in {city}.
*offer: You could go to {show} {date}.
done: Your tickets for {show} are booked.
done: I bought the tickets.
*done: Enjoy {show}, the tickets are on the way.
q.street: Where does the event take place?
*q.street: What is the venue?
a.street: It takes place at {street}.
*a.street: The venue is at {street}.

# movie
open: I want to watch a movie.
open: Find me a {genre} movie in {city}.
open: Which movies are showing in {city}?
open: Can you get me movie tickets for {date}?
*open: Something for the cinema tonight would be nice.
*open: I feel like going to the cinema in {city}.
*open: Which film should I see at the cinema {date}?
ask.city: In which city do you want to see the movie?
ask.city: Where should I look for theaters?
*ask.city: Cinemas in what town?
say.city: Theaters in {city}, please.
say.city: I am in {city} right now.
*say.city: The cinemas in {city}.
ask.genre: What genre do you like?
ask.genre: What kind of movie would you like to see?
*ask.genre: Any favorite type of film?
say.genre: I like {genre} movies.
say.genre: A {genre} movie would be good.
*say.genre: A {genre} film, I think.
offer: {movie} is a {genre} movie, and it is showing at {time}.
offer: I found {count} movies. How about {movie}?
offer: You can see {movie} in {city} at {time}.
*offer: The cinema plays {movie} at {time}.
*offer: Would {movie} be a film for you?
*offer: A {genre} film called {movie} starts at {time}.
done: Your tickets for {movie} are reserved.
done: I have booked the movie for {time}.
*done: Two cinema seats for {movie} are paid.
q.price: How much is a ticket?
*q.price: What do they want for a cinema seat?
a.price: A ticket costs {ticket}.
*a.price: A seat is {ticket}.

# music
open: Play some music for me.
open: I want to listen to {music} music.
open: Can you find a song by {artist}?
open: Please play {song}.
*open: Put on a nice tune.
*open: Something by {artist} would be lovely now.
*open: I am in the mood for {music} sounds.
ask.music: What genre of music do you want?
ask.music: What kind of songs do you like?
*ask.music: Which style shall it be?
say.music: I like {music} songs.
say.music: Some {music}, please.
*say.music: My taste is {music}.
ask.device: Where should I play it?
ask.device: On which device do you want to hear it?
*ask.device: Which speaker shall I use?
say.device: Play it on the {device}.
say.device: On the {device}, please.
*say.device: Use my {device}.
offer: I found {song} by {artist}. Do you like it?
offer: How about {song} from {artist}?
offer: Shall I play {song} on the {device}?
*offer: {artist} has a tune called {song}.
*offer: I would pick {song} for the {device}.
*offer: Maybe {song} from {artist} fits.
done: Now playing {song}.
done: The song is playing on the {device}.
*done: {song} has started.
q.artist: Who is the singer?
*q.artist: Whose tune is that?
a.artist: The singer is {artist}.
*a.artist: That tune is by {artist}.

# weather
open: What is the weather like in {city}?
open: Will it rain {date}?
open: Can you check the weather for {date}?
open: How is the weather in {city} {date}?
*open: Do I need a jacket in {city} {date}?
*open: Give me the forecast, please.
*open: Is it going to be cold in {city}?
ask.city: Which city do you want the weather for?
ask.city: What is the location?
*ask.city: The forecast for which town?
say.city: For {city}, please.
say.city: I mean the weather in {city}.
*say.city: The town is {city}.
ask.date: For which day do you want to know?
ask.date: What date should I check?
*ask.date: On which day do you need the forecast?
say.date: I want to know it for {date}.
say.date: Check {date}.
*say.date: Take {date}.
offer: It will be {degrees} degrees in {city} with a {rain} percent chance of rain.
offer: The temperature should be around {degrees} degrees.
offer: Expect {degrees} degrees and a wind of {wind} miles per hour in {city}.
*offer: The forecast says {degrees} degrees for {city}.
*offer: There is a {rain} percent risk of showers, at {degrees} degrees.
*offer: {city} gets {degrees} degrees and {wind} miles per hour of wind.
accept: Okay, good to know.
accept: All right, that helps.
*accept: Fine, I will plan for that.
done: Have a good time.
done: I am glad to help.
*done: Then you are prepared.
q.wind: How windy will it be?
*q.wind: Is there much wind?
a.wind: The wind will be {wind} miles per hour.
*a.wind: It blows at {wind} miles an hour.

# bank
open: I want to transfer money to {person}.
open: What is the balance of my {account} account?
open: Please send {amount} to {person}.
open: Can you help me with my bank account?
*open: I owe {person} some money.
*open: Move {amount} for me, please.
*open: Help me pay {person} back.
ask.account: From which account should I take it?
ask.account: Checking or savings?
*ask.account: Which of your accounts shall I use?
say.account: My {account} account, please.
say.account: Use the {account} account.
*say.account: Take the {account} one.
ask.amount: How much would you like to send?
ask.amount: What amount should I transfer?
*ask.amount: What sum do you have in mind?
say.amount: Please transfer {amount}.
say.amount: It is {amount}.
*say.amount: I was thinking of {amount}.
ask.person: Who should receive the money?
ask.person: Who is it for?
*ask.person: What is the name of the receiver?
say.person: The money goes to {person}.
say.person: Send it to {person}.
*say.person: {person} should get it.
offer: Please confirm: {amount} from your {account} account to {person}.
offer: I will send {amount} to {person}. Is that right?
offer: You want to transfer {amount} to {person}, correct?
*offer: So {amount} leaves your {account} account for {person}.
*offer: Shall {person} get {amount} from {account}?
*offer: That is {amount} for {person}, did I get it right?
done: The transfer is complete.
done: I sent {amount} to {person}.
*done: {person} has the money now.
q.days: How long does the transfer take?
*q.days: When does the money get there?
a.days: It takes {count} days.
*a.days: Please allow {count} days for it.

# alarm
open: Set an alarm for {time}.
open: I need a new alarm.
open: Can you wake me up {date}?
open: Please add an alarm called {alarm}.
*open: I must not oversleep {date}.
*open: Make my phone ring at {time}.
*open: Could something ring at {time} for me?
ask.time: What time should the alarm go off?
ask.time: For what time do you need the alarm?
*ask.time: When shall I wake you?
say.time: It should go off at {time}.
say.time: I need it at {time}.
*say.time: Wake me at {time} sharp.
ask.alarm: What should I call the alarm?
ask.alarm: Do you want to give it a name?
*ask.alarm: Which label do you like?
say.alarm: Call it {alarm}.
say.alarm: The name is {alarm}.
*say.alarm: Label it {alarm}.
offer: I will set the alarm {alarm} for {time}. Is that okay?
offer: Please confirm the alarm at {time}, called {alarm}.
*offer: So your phone rings at {time} with the label {alarm}.
*offer: {alarm} at {time}, did I get that right?
*offer: I am about to add {alarm} at {time}.
done: Your alarm is set.
done: The alarm for {time} has been added.
*done: It will ring at {time}.
q.list: Do I have any other alarms?
*q.list: What else is set to ring?
a.list: You have another alarm at {other_time}.
*a.list: One more will ring at {other_time}.

# calendar
open: Add an event to my calendar.
open: Do I have anything planned {date}?
open: Please put {appointment} on my calendar.
open: What is on my schedule {date}?
*open: I have to remember {appointment}.
*open: Am I busy {date}?
*open: Let me plan {appointment} with you.
ask.appointment: What is the name of the event?
ask.appointment: What should I write in the calendar?
*ask.appointment: How shall I title the entry?
say.appointment: It is called {appointment}.
say.appointment: Write {appointment}.
*say.appointment: Title it {appointment}.
ask.date: On which day is the event?
ask.date: What date should I enter?
*ask.date: Which day belongs to the entry?
say.date: It is {date}.
say.date: The day is {date}.
*say.date: Enter {date}.
offer: I will add {appointment} {date} at {time}. Is that right?
offer: You are free {date}. Should I add {appointment} at {time}?
*offer: The entry would be {appointment}, {date} at {time}.
*offer: Nothing stands in the way {date}. Shall I note {appointment}?
*offer: Your calendar would show {appointment} at {time}.
done: The event is on your calendar.
done: I added {appointment} to your schedule.
*done: The entry is saved.
q.free: Am I free after that?
*q.free: Is the rest of that day open?
a.free: Yes, you have nothing else that day.
*a.free: No other entries, the rest is open.
"""
