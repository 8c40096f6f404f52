"""Sentence templates of the next scenes: rental cars, buses and errands."""

SCENES_B = """
# car
open: I need to rent a car in {city}.
open: Can you find me a rental car?
open: I am looking for a {car} car to rent.
open: Please get me a car starting {date}.
*open: Which cars can I hire in {city}?
*open: I want to have my own wheels for the trip.
*open: Is a {car} car free in {city} {date}?
ask.city: Where do you want to pick up the car?
ask.city: In what city do you need the car?
*ask.city: Which pickup location shall I take?
say.city: I will pick it up in {city}.
say.city: I need the car in {city}.
*say.city: Pickup would be in {city}.
ask.date: When do you need the car?
ask.date: What is the start date of the rental?
*ask.date: From what day on should I rent it?
say.date: I need it {date}.
say.date: The rental starts {date}.
*say.date: I would collect it {date}.
ask.car: What type of car do you want?
ask.car: Do you prefer a compact or a full-size car?
*ask.car: Which car class is right for you?
say.car: A {car} car, please.
say.car: I would like a {car} one.
*say.car: Something {car} will do.
offer: There is a {car} car in {city} for {price} per day.
offer: I found a {car} car. You can pick it up at {time}.
offer: Let me confirm: a {car} car in {city} from {date}.
*offer: A {car} model is available at {price} a day.
*offer: In {city} they have a {car} one from {time}.
*offer: How does a {car} car from {date} sound?
done: The car is reserved for you.
done: Your rental car is booked.
*done: The car will be waiting for you.
q.price: What is the price per day?
*q.price: How expensive is the rental?
a.price: It costs {price} per day.
*a.price: The daily rate is {price}.

# bus
open: I'd like to take a bus to {to}.
open: Can you look up buses from {from}?
open: I need bus tickets for {date}.
open: Please book me a bus from {from} to {to}.
*open: Is there a coach going to {to}?
*open: I want to travel by bus {date}.
*open: My plan is to take a coach from {from} {date}.
ask.from: Where will you take the bus from?
ask.from: What is the starting city of the bus?
*ask.from: In which city do you board the coach?
say.from: I will take it from {from}.
say.from: The bus should leave {from}.
*say.from: My coach starts in {from}.
ask.to: Where is the bus going?
ask.to: What city do you want to reach?
*ask.to: Which place should the coach go to?
say.to: I want to reach {to}.
say.to: It should go to {to}.
*say.to: Take me to {to}.
ask.date: What day is the bus trip?
ask.date: When do you want to travel?
*ask.date: For which day shall I check the coach?
say.date: I travel {date}.
say.date: The trip is {date}.
*say.date: I'd go {date}.
offer: A bus leaves {from} at {time} and costs {price}.
offer: I found a bus to {to} at {time}.
offer: There are {count} buses. The first one goes at {time}.
*offer: You could ride the {time} coach to {to}.
*offer: One coach departs at {time}, a seat is {price}.
*offer: The coach to {to} departs at {time}.
done: Your bus tickets are ready.
done: I have booked the bus to {to}.
*done: The coach seats are yours now.
q.stops: Does the bus make any stops?
*q.stops: Is it a direct coach?
a.stops: No, it goes directly to {to}.
*a.stops: Yes, there are no transfers on the way.

# doctor
open: I need to see a {doctor}.
open: Can you find a doctor in {city}?
open: I don't feel well and want to see a doctor.
open: Please make me an appointment with a {doctor}.
*open: Who is a good {doctor} around here?
*open: My back hurts, help me get medical advice.
*open: Who treats patients in {city} {date}?
ask.doctor: What kind of doctor do you need?
ask.doctor: Should it be a general doctor or a specialist?
*ask.doctor: Which specialist would you like to visit?
say.doctor: I need a {doctor}.
say.doctor: A {doctor}, please.
*say.doctor: It has to be a {doctor}.
ask.city: In which city should the doctor be?
ask.city: Where do you need the appointment?
*ask.city: What place is best for the visit?
say.city: The doctor should be in {city}.
say.city: Near {city}.
*say.city: I live in {city}, so there.
ask.time: What time is good for the appointment?
ask.time: When would you like to see the doctor?
*ask.time: At what hour can you come?
say.time: I am free at {time}.
say.time: Please try {time}.
*say.time: I could come by at {time}.
offer: {doctor_name} is a {doctor} in {city}.
offer: I found {count} doctors. How about {doctor_name}?
offer: {doctor_name} is free {date} at {time}. Is that okay?
*offer: You might like {doctor_name}, a {doctor} in {city}.
*offer: There is an opening with {doctor_name} at {time}.
*offer: I can sign you up with {doctor_name} for {time}.
done: Your appointment with {doctor_name} is set.
done: The appointment is made for {time}.
*done: {doctor_name} will see you then.
q.phone: What is the number of the office?
*q.phone: How do I reach the office?
a.phone: The office number is {phone}.
*a.phone: Call the office at {phone}.

# salon
open: I need a haircut.
open: Can you find a hair salon in {city}?
open: Please book a hair appointment for {date}.
open: I want to get my hair done in {city}.
*open: Who cuts hair well in {city}?
*open: My hair is too long, get me to a stylist.
*open: Which stylist in {city} is free {date}?
ask.city: Which city is good for the salon?
ask.city: Where should I look for a salon?
*ask.city: In what town do you want the stylist?
say.city: Look for a salon in {city}.
say.city: The one in {city} would be nice.
*say.city: A stylist in {city}, if possible.
ask.date: What day do you want the haircut?
ask.date: Which day should I book at the salon?
*ask.date: When can the stylist expect you?
say.date: I can go {date}.
say.date: Let me go {date}.
*say.date: I have time {date}.
ask.time: At what time should the appointment be?
ask.time: What time do you prefer at the salon?
*ask.time: Which hour is best for the cut?
say.time: {time} is good for me.
say.time: I would come at {time}.
*say.time: I'd say {time}.
offer: {salon} is a good salon in {city}.
offer: I can book {salon} at {time}. Is that right?
offer: There are {count} salons. {salon} has a rating of {rating}.
*offer: The stylists at {salon} are free at {time}.
*offer: What about {salon} in {city}?
*offer: {salon} could take you {date} at {time}.
done: You are booked at {salon}.
done: I made the hair appointment for {date}.
*done: {salon} put you down for {time}.
q.unisex: Is the salon for men and women?
*q.unisex: Do they take both men and women?
a.unisex: Yes, it is a unisex salon.
*a.unisex: They do, everyone can go there.

# apartment
open: I am looking for an apartment in {city}.
open: Can you help me find a place to rent?
open: I want to move to {city} and need an apartment.
open: Please find an apartment with {beds} bedrooms.
*open: We need a new home in {city}.
*open: Show me some flats that I could rent.
*open: Is anything with {beds} bedrooms on the market in {city}?
ask.city: What area should the apartment be in?
ask.city: In which city do you want to live?
*ask.city: Where would your new home be?
say.city: I want to live in {city}.
say.city: It should be in {city}.
*say.city: Our new home would be in {city}.
ask.beds: How many bedrooms do you need?
ask.beds: What number of bedrooms would you like?
*ask.beds: How large should the flat be?
say.beds: I need {beds}.
say.beds: At least {beds}, please.
*say.beds: We want {beds} bedrooms in it.
offer: {building} in {city} rents for {rent} per month.
offer: I found {building}. The address is {street}.
offer: How about {building}? The rent is {rent}.
*offer: A flat at {building} is open for {rent}.
*offer: You may like {building} on {street}.
*offer: {building} has something for you at {rent} a month.
done: Your visit at {building} is scheduled for {date}.
done: I arranged a visit to the apartment.
*done: {building} will show you the flat {date}.
q.pets: Are pets allowed?
*q.pets: May I bring my dog?
a.pets: Yes, pets are allowed.
*a.pets: Dogs and cats are no problem there.
"""
