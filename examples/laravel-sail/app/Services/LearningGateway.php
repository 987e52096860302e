<?php

namespace App\Services;

use App\Exceptions\GatewayBusy;
use App\Exceptions\LearningGatewayError;
use Closure;
use Generator;
use Illuminate\Http\Client\PendingRequest;
use Illuminate\Http\Client\Response;
use Illuminate\Support\Facades\Http;

/**
 * The product's side of learning-gateway: whole rosters by REST, everything else by GraphQL.
 *
 * What goes wrong is thrown as a LearningGatewayError. When the gateway answers 503 it has not done
 * anything yet, so reads and writes alike are sent again, after the time it asks for.
 */
final class LearningGateway
{
    private const TRIES = 3;

    private const LONGEST_WAIT_SECONDS = 30;

    /** @param Closure(int): mixed $sleep waits so many seconds; a test may have something better to do */
    public function __construct(
        private readonly string $url,
        private readonly string $token,
        private readonly int $timeout = 30,
        private readonly ?Closure $sleep = null,
    ) {
    }

    // ---- REST: one provider at a time, everything in one answer ---------------------------

    /** @return list<array<string, ?string>> every account of one provider */
    public function users(string $providerId): array
    {
        return $this->rows('users', $providerId);
    }

    /** @return list<array<string, mixed>> every course of one provider, img_url being a URL */
    public function courses(string $providerId): array
    {
        return $this->rows('courses', $providerId);
    }

    /** @return list<array<string, mixed>> enrollments, of one user or one course when given */
    public function enrollments(string $providerId, ?string $userId = null, ?string $courseId = null): array
    {
        return $this->rows('enrollments', $providerId, array_filter([
            'user_id' => $userId,
            'course_id' => $courseId,
        ], static fn (?string $value): bool => $value !== null));
    }

    /**
     * Register a provider; in answer to a callback, with the nonce it brought.
     *
     * @param array{id: string, type: string, url: string, account_id?: string, api_key?: string, username?: string, password?: string} $provider
     */
    public function addProvider(array $provider, ?string $nonce = null): void
    {
        $headers = $nonce === null ? [] : ['X-Registration-Nonce' => $nonce];
        $this->sent(fn () => $this->http()->withHeaders($headers)->post('/api/add-provider', $provider));
    }

    // ---- GraphQL ----------------------------------------------------------------------------

    /** @return list<array{id: string, providerId: string, name: string, state: string}> */
    public function providers(): array
    {
        return $this->query('query Providers { providers { id providerId name state } }')['providers'];
    }

    /**
     * Yield every user of some providers, page by page, however many there are.
     *
     * A provider that is down does not keep the others' users away. When the walk has ended,
     * getReturn() names the providers that are still missing: walk again when they are back.
     *
     * @param list<string> $providerIds
     * @return Generator<int, array<string, mixed>, mixed, list<string>>
     */
    public function eachUser(array $providerIds, int $pageSize = 500): Generator
    {
        $variables = ['filter' => ['providerIds' => $providerIds], 'first' => $pageSize, 'after' => null];
        do {
            $users = $this->query(self::USERS, $variables)['users'];
            foreach ($users['nodes'] as $user) {
                yield $user;
            }
            $variables['after'] = $users['pageInfo']['endCursor'];
        } while ($users['pageInfo']['hasNextPage']);

        return collect($users['sources'])->where('status', 'FAILED')->pluck('providerId')->all();
    }

    /**
     * Give a user a place in a course, unless they have it.
     *
     * @param string $idempotencyKey a new one for every write, the same when it is tried again
     * @return array{created: bool, enrollment: array{id: string, state: string}}
     */
    public function enroll(string $userId, string $courseId, string $idempotencyKey, string $role = 'STUDENT'): array
    {
        return $this->written('enrollUser', self::ENROLL, compact('userId', 'courseId', 'role', 'idempotencyKey'));
    }

    /** @return array{changed: bool, enrollment: array{id: string, state: string}} */
    public function endEnrollment(string $enrollmentId, string $courseId, string $ending = 'CONCLUDE'): array
    {
        return $this->written('endEnrollment', self::END_ENROLLMENT, compact('enrollmentId', 'courseId', 'ending'));
    }

    public function removeProvider(string $providerId): void
    {
        $this->query(self::REMOVE_PROVIDER, ['providerId' => $providerId]);
    }

    /** Begin to import a provider, and yield how it gets on until it has ended. */
    public function import(string $providerId): Generator
    {
        $this->written('refreshProvider', self::REFRESH, ['providerId' => $providerId]);
        yield from $this->watch(self::PROGRESS, ['providerId' => $providerId]);
    }

    /**
     * Run a GraphQL operation.
     *
     * Rows of a provider that is down are missing from the data and named in $errors. It is an
     * exception when nothing at all came back.
     *
     * @param array<string, mixed> $variables
     * @param list<LearningGatewayError>|null $errors
     * @return array<string, mixed>
     */
    public function query(string $document, array $variables = [], ?array &$errors = null): array
    {
        // PHP writes empty variables as [], which the gateway takes for {}.
        $asked = ['query' => $document, 'variables' => $variables];
        $answer = $this->sent(fn () => $this->http()->post('/graphql', $asked))->json();

        return $this->read($answer, $errors);
    }

    /**
     * Subscribe, and yield what comes until it has ended: for commands and queued jobs.
     *
     * @param array<string, mixed> $variables
     * @return Generator<int, array<string, mixed>>
     */
    public function watch(string $document, array $variables = []): Generator
    {
        $asked = ['query' => $document, 'variables' => $variables];
        // The gateway sends a comment every twelve seconds, so a stream that lives never times out.
        $streaming = $this->http('text/event-stream')->withOptions(['stream' => true]);
        $answer = $this->sent(fn () => $streaming->post('/graphql', $asked));
        $body = $answer->toPsrResponse()->getBody();
        $received = '';
        while (! $body->eof()) {
            $received .= $body->read(8192);
            while (($end = strpos($received, "\n\n")) !== false) {
                $event = substr($received, 0, $end);
                $received = substr($received, $end + 2);
                if (str_starts_with($event, "event: next\ndata: ")) {
                    yield $this->read(json_decode(substr($event, 18), true, flags: JSON_THROW_ON_ERROR));
                } elseif (str_starts_with($event, 'event: complete')) {
                    return;
                }
            }
        }
        // After an hour, and when the gateway is restarted.
        throw new GatewayBusy('learning-gateway: The stream was cut off; watch again', 'GATEWAY_OVERLOADED', retryable: true);
    }

    // ---- how it is sent and read ------------------------------------------------------------

    /** @return list<array<string, mixed>> */
    private function rows(string $resource, string $providerId, array $filter = []): array
    {
        return $this->sent(fn () => $this->http()->get("/api/$resource", ['id' => $providerId] + $filter))->json();
    }

    /** Run a mutation, whose refusals are data of the type WriteRefused or ProviderRefused. */
    private function written(string $field, string $document, array $input): array
    {
        $payload = $this->query($document, ['input' => $input])[$field];
        if (isset($payload['code'])) {
            throw LearningGatewayError::from($payload['message'], $payload);
        }

        return $payload;
    }

    private function read(array $answer, ?array &$errors = null): array
    {
        $errors = array_map(
            static fn (array $error) => LearningGatewayError::from($error['message'], $error['extensions'] ?? []),
            $answer['errors'] ?? [],
        );
        $data = array_filter($answer['data'] ?? [], static fn (mixed $field): bool => $field !== null);
        if ($data === [] && $errors !== []) {
            throw $errors[0];
        }

        return $answer['data'];
    }

    /** @param Closure(): Response $send */
    private function sent(Closure $send): Response
    {
        for ($try = 1; ; $try++) {
            $response = $send();
            $wait = (int) $response->header('Retry-After');
            if ($response->status() !== 503 || $try === self::TRIES || $wait > self::LONGEST_WAIT_SECONDS) {
                return $this->checked($response);
            }
            ($this->sleep ?? sleep(...))(max(1, $wait));
        }
    }

    /** GraphQL's own errors are read from the answer, whatever its status; others are problem documents. */
    private function checked(Response $response): Response
    {
        $answer = $response->failed() ? $response->json() : null;
        if ($response->successful() || isset($answer['errors']) && $response->status() !== 503) {
            return $response;
        }
        $problem = $answer['errors'][0]['extensions'] ?? $answer ?? [];
        $message = $answer['detail'] ?? $answer['errors'][0]['message'] ?? "HTTP {$response->status()}";
        throw LearningGatewayError::from("learning-gateway: $message", $problem);
    }

    private function http(string $accept = 'application/json'): PendingRequest
    {
        return Http::baseUrl($this->url)->withToken($this->token)->timeout($this->timeout)->accept($accept);
    }

    private const USERS = <<<'GRAPHQL'
        query Users($filter: UserFilter, $first: Int!, $after: String) {
          users(filter: $filter, first: $first, after: $after) {
            nodes { id externalId username displayName givenName familyName email provider { providerId } }
            pageInfo { hasNextPage endCursor }
            sources { providerId status code retryable retryAfterSeconds }
          }
        }
        GRAPHQL;

    private const ENROLL = <<<'GRAPHQL'
        mutation Enroll($input: EnrollUserInput!) {
          enrollUser(input: $input) {
            ... on EnrollUserPayload { created enrollment { id state } }
            ... on WriteRefused { code message field retryable retryAfterSeconds providerId }
          }
        }
        GRAPHQL;

    private const END_ENROLLMENT = <<<'GRAPHQL'
        mutation EndEnrollment($input: EndEnrollmentInput!) {
          endEnrollment(input: $input) {
            ... on EndEnrollmentPayload { changed enrollment { id state } }
            ... on WriteRefused { code message field retryable retryAfterSeconds providerId }
          }
        }
        GRAPHQL;

    private const REMOVE_PROVIDER = <<<'GRAPHQL'
        mutation RemoveProvider($providerId: ID!) {
          removeProvider(providerId: $providerId) { __typename }
        }
        GRAPHQL;

    private const REFRESH = <<<'GRAPHQL'
        mutation Refresh($input: RefreshProviderInput!) {
          refreshProvider(input: $input) {
            ... on ImportRequested { alreadyUnderWay run { id state } }
            ... on ProviderRefused { code message field retryable }
          }
        }
        GRAPHQL;

    private const PROGRESS = <<<'GRAPHQL'
        subscription Progress($providerId: ID!) {
          importProgress(providerId: $providerId) {
            id state reading counts { kind read total } problemCode problem
          }
        }
        GRAPHQL;
}
