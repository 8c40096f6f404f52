"""Sentence templates of the first scenes: eating, travelling and getting around."""

SCENES_A = """
# restaurant
open: I'd like to find a restaurant in {city}.
open: Can you help me find a place to eat in {city}?
open: I am hungry. Please look for a restaurant.
open: I want to reserve a table at a {cuisine} restaurant.
open: Find me somewhere to have dinner {date}.
*open: I need a good spot for lunch in {city}.
*open: Where can I eat around {city}?
*open: Could you search for a dining place for me?
*open: We would love to go out for a meal {date}.
ask.city: In which city are you looking?
ask.city: What city should I search in?
ask.city: Where would you like to eat?
*ask.city: Which area do you prefer for the meal?
*ask.city: Could you tell me the town?
say.city: In {city}, please.
say.city: I would like something in {city}.
say.city: Look in {city}.
*say.city: It should be somewhere in {city}.
*say.city: Try {city} for me.
ask.cuisine: What kind of food do you like?
ask.cuisine: Do you have a cuisine in mind?
ask.cuisine: What type of food would you like?
*ask.cuisine: Which cuisine should I look for?
*ask.cuisine: Any preference for the food?
say.cuisine: I would love some {cuisine} food.
say.cuisine: {cuisine} would be great.
say.cuisine: I feel like {cuisine} today.
*say.cuisine: Let's go with {cuisine} dishes.
*say.cuisine: I am in the mood for {cuisine}.
ask.time: What time would you like the table?
ask.time: For what time should I book?
ask.time: When do you want to eat?
*ask.time: At which time will you arrive?
*ask.time: What time suits you for the table?
say.time: At {time}, please.
say.time: We can be there at {time}.
say.time: Book it for {time}.
*say.time: Around {time} would suit us.
*say.time: Let's make it {time}.
offer: I found {count} places. {place} in {city} is a nice {cuisine} restaurant.
offer: How about {place}? It is a {cuisine} restaurant in {city}.
offer: There is a {cuisine} restaurant called {place} in {city}. Would you like a table?
offer: Please confirm: a table at {place} in {city} at {time}.
*offer: I would suggest {place}, which serves {cuisine} food in {city}.
*offer: {place} in {city} has good reviews. Shall I reserve there?
*offer: One option is {place}, known for {cuisine} food.
done: Your table at {place} is booked for {time}.
done: I have made the reservation at {place}.
done: The reservation is confirmed.
*done: {place} is expecting you at {time}.
*done: All set, the table is yours.
q.phone: What is their phone number?
q.phone: Can I have the phone number?
*q.phone: How can I call them?
a.phone: Their phone number is {phone}.
a.phone: You can reach them at {phone}.
*a.phone: Please dial {phone}.
q.street: What is the address?
q.street: Where are they located?
*q.street: On which street is it?
a.street: The address is {street}.
a.street: They are located at {street}.
*a.street: You can find it at {street}.

# hotel
open: I need a hotel in {city}.
open: Can you find me a place to stay?
open: I am planning a trip and need a room in {city}.
open: Please search for a hotel for {people}.
open: I'd like to book a room starting {date}.
*open: Look up some hotels for my vacation in {city}.
*open: I have to spend a night in {city} and need a room.
*open: Help me with hotel accommodation, please.
*open: Which hotels in {city} have a free room {date}?
ask.city: Where will you be staying?
ask.city: Which city is the hotel in?
ask.city: What location do you want for the hotel?
*ask.city: To which place are you travelling?
*ask.city: Name the city for your stay, please.
say.city: I will stay in {city}.
say.city: The hotel should be in {city}.
say.city: I am going to {city}.
*say.city: My stay is in {city}.
*say.city: We are visiting {city}.
ask.date: When do you check in?
ask.date: What is your check-in date?
ask.date: From which day do you need the room?
*ask.date: On what day will you arrive at the hotel?
*ask.date: Starting when?
say.date: I check in {date}.
say.date: From {date}, please.
say.date: We get there {date}.
*say.date: Our first night is {date}.
*say.date: The stay begins {date}.
ask.people: How many guests are there?
ask.people: How many people will stay?
*ask.people: For how many should the room be?
say.people: It is for {people}.
say.people: We are {people}.
*say.people: There will be {people} in the room.
offer: I found {hotel} in {city}. It is rated {rating}.
offer: {hotel} has rooms for {price} a night. Would you like to book?
offer: Let me confirm: {hotel} in {city} for {people}, check-in {date}.
offer: There are {count} hotels. {hotel} is a popular one.
*offer: {hotel} is available, and a night costs {price}.
*offer: My suggestion is {hotel} with a rating of {rating}.
*offer: I see a free room at {hotel} from {date}.
done: Your room at {hotel} is reserved.
done: The hotel is booked, starting {date}.
done: I booked {hotel} for you.
*done: {hotel} has confirmed your room.
*done: The booking went through.
q.price: How much is it per night?
q.price: What does a room cost?
*q.price: What is the nightly rate?
a.price: It is {price} per night.
a.price: One night costs {price}.
*a.price: They charge {price} for each night.
q.street: Where is the hotel?
*q.street: Could you give me the hotel's address?
a.street: The hotel is at {street}.
*a.street: It stands at {street}.

# flight
open: I need to book a flight to {to}.
open: Can you find me a flight?
open: I want to fly from {from} to {to}.
open: Please look for a direct flight for {date}.
open: I am looking for plane tickets to {to}.
*open: Search for flights leaving {from}, please.
*open: I have to get to {to} by plane.
*open: Get me airline tickets for {date}.
*open: How do I fly from {from} to {to} {date}?
ask.from: Where are you flying from?
ask.from: What is your departure city?
ask.from: From which city do you leave?
*ask.from: Which airport is your starting point?
*ask.from: Where does your trip begin?
say.from: I am leaving from {from}.
say.from: From {from}.
say.from: My flight starts in {from}.
*say.from: I take off in {from}.
*say.from: The departure is from {from}.
ask.to: Where do you want to go?
ask.to: What is your destination?
*ask.to: To what city shall I search?
say.to: I am going to {to}.
say.to: To {to}, please.
*say.to: My destination would be {to}.
ask.date: When would you like to leave?
ask.date: What day do you want to fly?
ask.date: On which date is the flight?
*ask.date: What is the travel date?
*ask.date: Which day works for the departure?
say.date: I want to leave {date}.
say.date: I'd like to fly {date}.
*say.date: {date} is the day I travel.
*say.date: We fly out {date}.
offer: There is a {airline} flight from {from} to {to} at {time} for {price}.
offer: I found {count} flights. One leaves with {airline} at {time}.
offer: How about the {airline} flight at {time}? It costs {price}.
offer: {airline} has a direct flight to {to} leaving at {time}.
*offer: You could take {airline} at {time}, the ticket is {price}.
*offer: A flight with {airline} departs {from} at {time}.
*offer: The best match is {airline} at {time} to {to}.
done: Your flight to {to} is booked.
done: I have bought the ticket for you.
done: The tickets are confirmed. Have a good flight.
*done: You are booked on the {time} flight.
*done: {airline} has issued your ticket.
q.arrive: When does it arrive?
q.arrive: What time does it land?
*q.arrive: At what time do I get there?
a.arrive: It arrives at {other_time}.
a.arrive: The plane lands at {other_time}.
*a.arrive: You will be there by {other_time}.

# train
open: I want to take a train to {to}.
open: Can you find a train for me?
open: I need train tickets from {from}.
open: Please find a train leaving {date}.
open: Are there any trains from {from} to {to}?
*open: I prefer to go by rail to {to}.
*open: Help me with a train trip {date}.
*open: Check the train connections out of {from}.
*open: I would rather ride a train than drive to {to}.
ask.from: From which station do you depart?
ask.from: Where does the train leave from?
*ask.from: Your departure station, please?
say.from: I get on in {from}.
say.from: From the station in {from}.
*say.from: I board at {from}.
ask.to: What city is the train going to?
ask.to: Where would you like to get off?
*ask.to: Which stop is your goal?
say.to: I get off in {to}.
say.to: The train should go to {to}.
*say.to: I ride to {to}.
ask.seats: How many tickets do you need?
ask.seats: For how many passengers?
*ask.seats: What number of seats shall I take?
say.seats: I need {seats}.
say.seats: Make it {seats}, please.
*say.seats: We want {seats} of them.
offer: A train leaves {from} at {time}. The fare is {price}.
offer: There is a train to {to} at {time}.
offer: I found a train from {from} to {to} {date} at {time}.
offer: The next train to {to} costs {price}. Should I buy it?
*offer: You can catch the {time} train for {price}.
*offer: One train fits: it starts in {from} at {time}.
*offer: For {price} you get a seat on the {time} train.
done: Your train tickets are booked.
done: The seats on the train are reserved.
*done: I got your rail tickets.
*done: You have a seat on the {time} train.
q.price: What is the total price?
q.price: How much are the tickets?
*q.price: What is the fare?
a.price: The tickets are {price}.
a.price: The total is {price}.
*a.price: You will pay {price} for it.
"""
