<?php

/** What a product does with the gateway, in Laravel: php laravel/tour.php */

use App\Exceptions\GatewayRefused;
use App\Exceptions\LearningGatewayError;
use App\Exceptions\ProviderFailed;
use App\Models\ProviderPlatform;
use App\Services\LearningGateway;
use Illuminate\Database\Schema\Blueprint;
use Illuminate\Support\Facades\Http;
use Illuminate\Support\Facades\Schema;
use Illuminate\Support\Str;

$database = tempnam(sys_get_temp_dir(), 'product-');
putenv("PRODUCT_DATABASE=$database");
$app = require __DIR__ . '/application.php';
$gateway = $app[LearningGateway::class];
$expected = json_decode(getenv('EXPECTED'), true);

// ---- query -------------------------------------------------------------------------------

$providers = $gateway->providers();
$answer = $gateway->query('query ($providerIds: [ID!]) {
    courses(filter: {providerIds: $providerIds}) { nodes { title enrollments { nodes { id state } } } }
}', ['providerIds' => ['2']]);
$courses = collect($answer['courses']['nodes']);
$enrollments = $courses->flatMap(fn (array $course) => $course['enrollments']['nodes']);
same(count($providers), 3);
same($courses->count(), $expected['courses']['2']);
same($enrollments->count(), $expected['enrollments']['2']);
same(count($gateway->users('1')), $expected['users']['1']); // by REST
same(count($gateway->courses('2')), $expected['courses']['2']);
$names = collect($providers)->implode('name', ', ');
shown('query', "$names; {$courses->count()} courses, {$enrollments->count()} enrollments; the same by REST");

// ---- pages -------------------------------------------------------------------------------

$ids = [];
foreach ($gateway->eachUser(['1', '2'], 9) as $user) {
    $ids[] = $user['id'];
}
same(count($ids), $expected['users']['1'] + $expected['users']['2']);
same(count(array_unique($ids)), count($ids));
shown('pages', count($ids) . ' users by nines, from a generator');

// ---- one provider is down ----------------------------------------------------------------

$users = $gateway->eachUser(['1', '3'], 50);
$there = iterator_count($users);
same($there, $expected['users']['1']);
same($users->getReturn(), ['3']);
same(codeOf(ProviderFailed::class, fn () => $gateway->users('3')), 'PROVIDER_UNAVAILABLE'); // by REST
shown('partial result', "$there users, and the walk returns that provider 3 is missing");

// ---- a mutation, with what it refuses ------------------------------------------------------

$found = $gateway->query('query ($providerIds: [ID!]) {
    users(filter: {providerIds: $providerIds, usernames: ["prince"]}) { nodes { id } }
    courses(filter: {providerIds: $providerIds, search: "ethics"}) { nodes { id } }
}', ['providerIds' => ['2']]);
$userId = $found['users']['nodes'][0]['id'];
$courseId = $found['courses']['nodes'][0]['id'];
$key = (string) Str::uuid();
$first = $gateway->enroll($userId, $courseId, $key);
same($first['created'], true);
same($gateway->enroll($userId, $courseId, $key), $first); // the first answer again; nothing is sent
$ended = $gateway->endEnrollment($first['enrollment']['id'], $courseId, 'REMOVE');
same($ended['enrollment']['state'], 'DROPPED');
$refused = fn () => $gateway->enroll($userId, $courseId, (string) Str::uuid(), 'PROCTOR');
$code = codeOf(GatewayRefused::class, $refused);
same($code, 'BAD_INPUT');
shown('mutation', "enrolled, once, and ended; refused with $code");

// ---- errors by their code -------------------------------------------------------------------

$stranger = new LearningGateway(getenv('LEARNING_GATEWAY_URL'), 'not a key');
$codes = [
    codeOf(GatewayRefused::class, fn () => $gateway->query('{ users(after: "not a cursor") { nodes { id } } }')),
    codeOf(GatewayRefused::class, fn () => $stranger->providers()),
    codeOf(GatewayRefused::class, fn () => $stranger->users('1')), // by REST
];
same($codes, ['BAD_INPUT', 'UNAUTHENTICATED', 'UNAUTHENTICATED']);
shown('error codes', implode(' and ', array_unique($codes)) . ', as exceptions');

// ---- a subscription -------------------------------------------------------------------------

$events = iterator_to_array($gateway->import('1'), false);
$last = end($events)['importProgress'];
same($last['state'], 'DONE');
same(collect($last['counts'])->firstWhere('kind', 'USERS')['read'], $expected['users']['1']);
shown('SSE', count($events) . " events of an import, the last one {$last['state']}");

// ---- a busy gateway: 503 with Retry-After, and the same request again -----------------------

// One key may have only so many streams open. These have no end.
$endless = ['query' => 'subscription { changes { type } }'];
$open = [];
do {
    $open[] = Http::withToken(getenv('LEARNING_GATEWAY_TOKEN'))->accept('text/event-stream')
        ->withOptions(['stream' => true])->post(getenv('LEARNING_GATEWAY_URL') . '/graphql', $endless);
} while (end($open)->ok());
same(end($open)->status(), 503);
$waited = [];
$sleep = static function (int $seconds) use (&$waited, &$open): void {
    $waited[] = $seconds;
    $open = [];
    gc_collect_cycles(); // hangs up: the responses are in cycles of objects
    sleep($seconds);
};
$patient = new LearningGateway(getenv('LEARNING_GATEWAY_URL'), getenv('LEARNING_GATEWAY_TOKEN'), sleep: $sleep);
$events = iterator_to_array($patient->watch('subscription { importProgress(providerId: "1") { state } }'));
same(count($waited), 1);
same($events, [['importProgress' => ['state' => 'DONE']]]);
echo 'A busy gateway was asked again after ' . implode(' and ', $waited) . " s, as it wished\n";

// ---- a provider the gateway does not know: it calls the product back ------------------------

Schema::create('provider_platforms', function (Blueprint $table): void {
    foreach (['id', 'type', 'account_id', 'base_url', 'username', 'password'] as $name) {
        $table->string($name)->nullable();
    }
});
Schema::create('jobs', function (Blueprint $table): void { // as php artisan queue:table makes it
    $table->bigIncrements('id');
    $table->string('queue')->index();
    $table->longText('payload');
    $table->unsignedTinyInteger('attempts');
    $table->unsignedInteger('reserved_at')->nullable();
    $table->unsignedInteger('available_at');
    $table->unsignedInteger('created_at');
});
ProviderPlatform::create([
    'id' => '4',
    'type' => 'kolibri',
    'account_id' => '',
    'base_url' => getenv('KOLIBRI_URL'),
    'username' => getenv('KOLIBRI_USERNAME'),
    'password' => getenv('KOLIBRI_PASSWORD'),
]);
$port = (int) getenv('PRODUCT_PORT');
$processes = [
    started([PHP_BINARY, '-S', "127.0.0.1:$port", __DIR__ . '/serve.php']),
    started([PHP_BINARY, __DIR__ . '/work.php']),
];
register_shutdown_function(static function () use ($processes, $database): void {
    array_map(proc_terminate(...), $processes);
    array_map(proc_close(...), $processes);
    unlink($database);
});
for ($tries = 0; ! @fsockopen('127.0.0.1', $port) && $tries < 100; $tries++) {
    usleep(50_000);
}
same(count($gateway->users('4')), $expected['users']['1']);
same(collect($gateway->providers())->firstWhere('providerId', '4')['state'], 'ACTIVE');
$gateway->removeProvider('4');
same(codeOf(GatewayRefused::class, fn () => $gateway->users('999')), 'PROVIDER_NOT_FOUND');
echo "Provider 4 registered itself when first asked for, by the job; the product does not know 999\n";

// ---- how the tour compares and tells ---------------------------------------------------------

function started(array $command)
{
    return proc_open($command, [1 => STDERR, 2 => ['file', '/dev/null', 'w']], $pipes);
}

/** Return the code of the error that a call throws, which must be of this class. */
function codeOf(string $class, Closure $call): string
{
    try {
        $call();
    } catch (LearningGatewayError $error) {
        same($error::class, $class);

        return $error->errorCode;
    }
    same(null, $class);
}

function same(mixed $actual, mixed $wanted): void
{
    if ($actual !== $wanted) {
        throw new UnexpectedValueException(json_encode($wanted) . ' was expected, came ' . json_encode($actual));
    }
}

/** Tell that a feature works: run.py makes the table of README.md from these lines. */
function shown(string $feature, string $text): void
{
    echo "[$feature] $text\n";
}
